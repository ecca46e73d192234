"""``evaluate``, ``imagine`` and ``plot_run``: what is done with a run when it is looked at.

A mistake is one line and exit code 2, before any work. jax and MuJoCo are loaded once the command line is sound.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import write_text_atomically

if TYPE_CHECKING:
    from polygrad_jax.analysis.opened_run import FinishedRun
    from polygrad_jax.types import Segment

BAD_INPUT = 2
ENVIRONMENT_FAILED = 1
FILM_FRAMES_PER_SECOND = 10.0
"""A trajectory is a fraction of a second long; slow enough to see it."""
PAUSE_FRAMES = 4
"""How often the first and the last state of a trajectory are shown."""
STRIP_TRAJECTORIES = 24
EVALUATIONS_FILE = "evaluations.csv"


class _Parser(argparse.ArgumentParser):
    """argparse, but its complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def exit_code(name: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command; bad input becomes one line on stderr and exit code 2."""
    try:
        return command(arguments)
    except ConfigError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _count(text: str) -> int:
    value = int(text) if text.lstrip("-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number, 1 or greater")
    return value


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: from 0 to 4294967295")
    return int(text)


def _run_parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    return parser


def _add_which_and_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--which", choices=("newest", "best"), default="newest", help="newest checkpoint, or best.npz")
    parser.add_argument("--seed", type=_seed, default=0, help="everything random follows from it (default 0)")


def _open(options: argparse.Namespace) -> FinishedRun:
    # A training run may hold the accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from polygrad_jax.analysis.opened_run import open_finished

    return open_finished(options.run, options.which)


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """A table by columns of equal length as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def _title(run: FinishedRun) -> str:
    """What every figure says of where it comes from."""
    from polygrad_jax.envs.tasks import gymnasium_id

    c = run.config
    which = "best evaluation" if run.which == "best" else "newest checkpoint"
    return f"{gymnasium_id(c.env)}, preset {c.preset}, seed {c.seed}, {run.env_steps:,} environment steps ({which})"


# --- evaluate --------------------------------------------------------------------------------------------------------


def evaluate_command(arguments: Sequence[str]) -> int:
    """``evaluate RUN [--episodes 20] [--video out.mp4] [--seed 0] [--which best]``: prints and returns the exit code.

    Raises:
      ConfigError: bad input, or a video that cannot be made here; nothing was written.
    """
    parser = _run_parser("evaluate", "Whole episodes with the policy's mean action.")
    parser.add_argument("--episodes", type=_count, default=20)
    parser.add_argument("--video", type=Path, default=None, help="film of the first episode, .mp4 or .gif")
    _add_which_and_seed(parser)
    options = parser.parse_args(arguments)
    from polygrad_jax.envs.collector import EnvStepError
    from polygrad_jax.analysis import films as rendering

    if options.video is not None:
        rendering.check_film_path(options.video)
    run = _open(options)
    try:
        row = evaluate_run(run, options.episodes, options.seed, options.video)
    except EnvStepError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return ENVIRONMENT_FAILED
    print(_title(run))
    print(f"return {row['return_mean']:.1f} ± {row['return_std']:.1f} over {options.episodes} episodes, mean action")
    print(f"length {row['length_mean']:.1f} ± {row['length_std']:.1f} environment steps")
    if "distance_mean" in row:
        print(f"distance {row['distance_mean']:.2f} ± {row['distance_std']:.2f} m")
    path = append_evaluation(run, row)
    print(f"added to {path}" + (f"; video {options.video}" if options.video else ""))
    return 0


def evaluate_run(run: FinishedRun, episodes: int, seed: int, video: Path | None = None) -> dict[str, Any]:
    """Returns, lengths and distances of whole episodes with the mean action; the first one is filmed if asked for.

    Standard deviations are over episodes (population). Without ``distance_*`` where the environment does not tell.

    Raises:
      ConfigError: a video that cannot be made here; nothing was run.
    """
    import jax

    from polygrad_jax.envs.episodes import run_episodes
    from polygrad_jax.analysis import films as rendering
    from polygrad_jax.training.evaluating import make_behaviour, mean_actions

    acting = jax.device_put(run.acting, jax.local_devices(backend="cpu")[0])
    mean_action = mean_actions(make_behaviour(run.config, run.spec), acting, seed)
    if video is None:
        results = run_episodes(run.config.env, mean_action, episodes, seed)
    else:
        rendering.require_rendering(run.config.env)
        with rendering.film(video, rendering.frames_per_second_of(run.config.env)) as on_frame:
            results = run_episodes(run.config.env, mean_action, episodes, seed, on_frame)
    row: dict[str, Any] = {"env_steps": run.env_steps, "which": run.which, "seed": seed, "episodes": episodes}
    for name in ("return", "length", "distance"):
        values = getattr(results, f"{name}s")
        if np.isfinite(values).all():
            row |= {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())}
    return row


def append_evaluation(run: FinishedRun, row: Mapping[str, Any]) -> Path:
    """Adds a row to ``evaluations.csv`` of the run folder (``eval.csv`` is the training's own) and returns its path."""
    path = run.folder / EVALUATIONS_FILE
    text = csv_text({name: [value] for name, value in row.items()})
    header, line = text.splitlines(keepends=True)
    before = path.read_text() if path.is_file() else ""
    if before and before.splitlines()[0] + "\n" != header:
        raise ConfigError(f"{path} has other columns; allowed: a file that this command wrote, or none")
    write_text_atomically(path, (before or header) + line)
    return path


# --- imagine ---------------------------------------------------------------------------------------------------------


def imagine_command(arguments: Sequence[str]) -> int:
    """``imagine RUN [--trajectories 100] [--out DIR] [--video | --gif | --no-video]``: prints, returns the exit code.

    Raises:
      ConfigError: bad input, or a video asked for that cannot be made here; nothing was written.
    """
    from polygrad_jax.analysis.opened_run import require_raw_policy

    options = _imagine_parser().parse_args(arguments)
    out = options.out or options.run / "imagined"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {out}, which is a file; allowed: a folder")
    run = _open(options)
    require_raw_policy(run)
    film, no_film = _choose_film(run, options, out)
    print(_title(run))
    shown = min(options.shown, options.trajectories)
    for line in imagine_run(run, out, options.trajectories, options.seed, film, shown):
        print(line)
    if no_film:
        print(no_film)
    return 0


def _imagine_parser() -> argparse.ArgumentParser:
    parser = _run_parser("imagine", "Imagined trajectories beside the simulator replaying the same actions.")
    parser.add_argument("--trajectories", type=_count, default=100)
    parser.add_argument("--out", type=Path, default=None, help="folder for what is made (default RUN/imagined)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--video", action="store_true", help="the film as .mp4")
    how.add_argument("--gif", action="store_true", help="the film as .gif (default, where it can be made)")
    how.add_argument("--no-video", action="store_true", help="no film")
    parser.add_argument("--shown", type=_count, default=5, help="trajectories in the film (default 5)")
    _add_which_and_seed(parser)
    return parser


def _choose_film(run: FinishedRun, options: argparse.Namespace, out: Path) -> tuple[Path | None, str | None]:
    """``(path of the film or None, why there is none)``.

    Raises:
      ConfigError: a film was asked for that cannot be made.
    """
    from polygrad_jax.analysis import films as rendering

    if options.no_video or not run.has_simulator_states:
        return None, None
    try:
        rendering.require_rendering(run.config.env)
        rendering.SideBySide(run.config.env).close()
    except ConfigError as error:
        if options.video or options.gif:
            raise
        return None, f"no film: {error}"
    return out / ("side_by_side.mp4" if options.video else "side_by_side.gif"), None


def imagine_run(
    run: FinishedRun, out: Path, trajectories: int, seed: int, film: Path | None = None, shown: int = 5
) -> list[str]:
    """Imagines, measures, draws, and writes all of it to ``out``; lines that say what was found and where it is."""
    import jax

    from polygrad_jax.analysis import opened_run as finished_run

    context_key, imagine_key, untrained_key = jax.random.split(jax.random.key(seed), 3)
    contexts = run.contexts(trajectories, context_key)
    segment = jax.device_get(finished_run.imagine(run, contexts, imagine_key))
    mean, std = jax.device_get(run.policy_apply(run.actor, segment.observations))
    lines = _report_actions(run, out, segment, mean, std)
    replayed = _replayed(run, contexts, segment)
    more = {"policy_mean": mean, "policy_std": std}
    if replayed is None:
        name = run.config.env.name
        lines.append(f"{name} has no simulator state (qpos, qvel) to replay from: no error against horizon, no film")
    else:
        more |= {"replayed_observations": replayed[0], "replayed_rewards": replayed[1]}
        lines += _report_errors(run, out, contexts, segment, replayed, imagine_key, untrained_key)
    finished_run.export_segment(out / "trajectories.npz", segment, **more)
    lines += _report_diffusion(run, out, contexts, imagine_key)
    if film is not None:
        lines += _film(run, film, contexts, segment, shown)
    return [*lines, f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))}"]


def _replayed(run: FinishedRun, contexts: Segment, segment: Segment) -> tuple[np.ndarray, np.ndarray] | None:
    """Observations ``[B, H, O]`` and rewards ``[B, H - 1]`` of MuJoCo under the imagined actions; None without it."""
    from polygrad_jax.envs.mujoco_state import replay_actions

    if not run.has_simulator_states:
        return None
    states = run.simulator_states(contexts)
    return replay_actions(run.config.env, states, np.asarray(segment.actions)[:, :-1])[:2]


def _report_actions(
    run: FinishedRun, out: Path, segment: Segment, mean: np.ndarray, std: np.ndarray
) -> list[str]:
    from polygrad_jax.analysis import action_spread as measures, figures

    z = measures.standardised_actions(segment.actions, mean, std)
    spreads = [measures.spread_of(z), *(measures.spread_of(z[..., a]) for a in range(z.shape[-1]))]
    columns: dict[str, list[Any]] = {"action": ["all", *range(z.shape[-1])]}
    columns |= {name: [getattr(s, name) for s in spreads] for name in measures.Spread._fields}
    write_text_atomically(out / "action_distribution.csv", csv_text(columns))
    figures.save(figures.action_distribution(z, _title(run)), out / "action_distribution.png")
    s = spreads[0]
    return [
        f"standardised actions: std {s.std:.3f}, mean {s.mean:+.3f}, excess kurtosis {s.excess_kurtosis:+.2f}, "
        f"KS distance from N(0, 1) {s.ks_distance:.3f}"
    ]


def _report_errors(
    run: FinishedRun,
    out: Path,
    contexts: Segment,
    segment: Segment,
    replayed: tuple[np.ndarray, np.ndarray],
    imagine_key: Any,
    untrained_key: Any,
) -> list[str]:
    """Error against horizon of the run's model, of 'nothing moves', and of a model that has learnt nothing."""
    import jax

    from polygrad_jax.analysis import action_spread as measures, figures, opened_run as finished_run

    beginner = finished_run.untrained_state(run, untrained_key)
    untrained = jax.device_get(finished_run.imagine(run, contexts, imagine_key, beginner))
    # Each against the simulator under its own actions.
    untrained_replayed = _replayed(run, contexts, untrained)
    predictions = {
        "imagined": (segment.observations, replayed[0]),
        "nothing moves": (measures.staying_still(replayed[0]), replayed[0]),
        "untrained": (untrained.observations, untrained_replayed[0]),
    }
    errors = {name: measures.by_horizon(measures.squared_errors(*pair)) for name, pair in predictions.items()}
    columns: dict[str, Any] = {"horizon": range(1, segment.observations.shape[1])}
    for name, error in errors.items():
        columns |= {f"{name.replace(' ', '_')}_{part}": values.tolist() for part, values in error._asdict().items()}
    write_text_atomically(out / "error_against_horizon.csv", csv_text(columns))
    title = f"{_title(run)}\nmean and quartiles over {len(segment.rewards)} trajectories"
    figures.save(figures.error_against_horizon(errors, title), out / "error_against_horizon.png")
    last = len(errors["imagined"].mean)
    reward = np.square(segment.rewards[:, 0] - replayed[1][:, 0]).mean()
    parts = [f"{name} {error.mean[0]:.4g} -> {error.mean[-1]:.4g}" for name, error in errors.items()]
    return [
        f"squared error per observation dimension, horizon 1 -> {last}: " + ", ".join(parts),
        f"squared error of the first reward: {reward:.4g}",
    ]


def _report_diffusion(run: FinishedRun, out: Path, contexts: Segment, key: Any) -> list[str]:
    """The strip; its trajectories are the film's and the errors' own where there are no more of those."""
    import jax

    from polygrad_jax.envs.mujoco_state import replay_actions
    from polygrad_jax.analysis import figures, opened_run as finished_run

    if not finished_run.shows_diffusion(run):
        return [f"world model {run.config.world_model} does not diffuse: no diffusion strip"]
    few = jax.tree.map(lambda x: x[:STRIP_TRAJECTORIES], contexts)
    stages = finished_run.diffuse(run, few, key)
    policy = jax.device_get(run.policy_apply(run.actor, stages.observations))
    replayed = None
    if run.has_simulator_states:
        states = run.simulator_states(few)[:1]
        replayed = replay_actions(run.config.env, states, stages.actions[-1, :1, :-1])[0][0]
    title = (
        f"{_title(run)}\nBlue: one trajectory; grey: others; orange: the policy's mean ± 2 std at the blue states"
        + ("" if replayed is None else "; dashed: the simulator under the finished actions")
    )
    figure = figures.diffusion_strip(
        stages.steps, stages.observations, stages.actions, policy, replayed, _observation_names(run), title
    )
    figures.save(figure, out / "diffusion_strip.png")
    return []


def _observation_names(run: FinishedRun) -> dict[int, str]:
    """Two observation dimensions worth looking at, by name: the first position and the first velocity in MuJoCo."""
    from polygrad_jax.envs import tasks as registry
    from polygrad_jax.analysis.films import observation_holds

    env = registry.make(run.config.env)
    env.reset(seed=0)
    base, holds = env.unwrapped, observation_holds(env)
    env.close()
    if holds is None:
        return {d: f"observation {d}" for d in range(min(2, run.spec.observation_size))}
    joints = [base.model.joint(j).name for j in range(base.model.njnt)]
    hidden = 1 if holds == "pose but x" else 0
    return {0: f"{joints[hidden]}, position", base.model.nq - hidden: f"{joints[0]}, velocity"}


def _film(run: FinishedRun, path: Path, contexts: Segment, segment: Segment, shown: int) -> list[str]:
    """Left the simulator put into the imagined states, right the simulator under the same actions."""
    from polygrad_jax.analysis import films as rendering

    states, horizon = run.simulator_states(contexts), segment.observations.shape[1]
    stage = rendering.SideBySide(run.config.env)
    with rendering.film(path, FILM_FRAMES_PER_SECOND) as add:
        for b in range(shown):
            frames = stage.frames(segment.observations[b], segment.actions[b], states[b])
            for step, frame in enumerate(frames):
                left = f"imagined {b + 1}/{shown}, step {step}/{horizon - 1}"
                picture = rendering.captioned(frame, left, "MuJoCo, same actions")
                for _ in range(PAUSE_FRAMES if step in (0, horizon - 1) else 1):
                    add(picture)
    stage.close()
    return []


# --- plot_run --------------------------------------------------------------------------------------------------------


def plot_run_command(arguments: Sequence[str]) -> int:
    """``plot_run RUN [-o RUN/training_curves.png]``: the training curves as a figure; returns the exit code.

    Raises:
      ConfigError: bad input.
    """
    parser = _run_parser("plot_run", "Training curves of a run.")
    parser.add_argument("-o", "--out", type=Path, default=None, help="default RUN/training_curves.png")
    options = parser.parse_args(arguments)
    from polygrad_jax.analysis import figures
    from polygrad_jax.analysis.opened_run import read_evaluations
    from polygrad_jax.runs.metrics_log import read_rows
    from polygrad_jax.runs.run_folder import RunFolder

    out = options.out or options.run / "training_curves.png"
    figures.check_figure_path(out)
    saved = RunFolder(options.run).saved_config()
    task = saved.get("env", {}).get("name", "?")
    title = f"{task}, preset {saved.get('preset', '?')}, seed {saved.get('seed', '?')}"
    figures.save(figures.training_curves(read_rows(options.run), read_evaluations(options.run), title), out)
    print(f"written: {out}")
    return 0
