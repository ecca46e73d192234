"""What ``evaluate``, ``imagine`` and ``plot`` write: tables, figures and films of one run."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from polygrad_jax.analysis import action_spread, figures, films
from polygrad_jax.analysis.opened_run import OpenedRun, diffuse, export_segment, shows_diffusion
from polygrad_jax.config import ConfigError
from polygrad_jax.envs import tasks
from polygrad_jax.envs.mujoco_state import no_simulator_states, replay_actions
from polygrad_jax.envs.prediction_error import squared_errors, staying_still
from polygrad_jax.envs.rendering import require_rendering
from polygrad_jax.runs import physics
from polygrad_jax.runs.metrics_log import append_csv_row, csv_columns
from polygrad_jax.runs.run_folder import RunFolder, write_text_atomically
from polygrad_jax.runs.saved_run import SavedRun
from polygrad_jax.training.collecting import make_decide
from polygrad_jax.training.evaluating import evaluate_policy
from polygrad_jax.types import Policy, Segment

FILM_FRAMES_PER_SECOND = 10.0
"""A trajectory is a fraction of a second long; slow enough to see it."""
PAUSE_FRAMES = 4
"""How often the first and the last state of a trajectory are shown."""
STRIP_TRAJECTORIES = 24
EVALUATIONS_FILE = "evaluations.csv"
FilmKind = Literal["gif", "mp4", "none"] | None
"""None: a gif where it can be made."""


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Format a table, given by columns of equal length, as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def _run_name(run: SavedRun) -> str:
    config = run.config
    try:
        task = tasks.gymnasium_id(config.env)
    except ConfigError:  # data that belong to no installed task
        task = config.env.name
    versions = physics.in_words(physics.version_of_run(RunFolder(run.folder).saved_environment()))
    return f"{task}{f', {versions}' if versions else ''}, preset {config.preset}, seed {config.seed}"


def title(run: OpenedRun) -> str:
    """Say where a figure comes from: task, MuJoCo's version, preset, seed, environment steps."""
    which = "best evaluation" if run.which == "best" else "newest checkpoint"
    return f"{_run_name(run.saved)}, {run.env_steps:,} environment steps ({which})"


# --- evaluate --------------------------------------------------------------------------------------------------------


def evaluate(run: OpenedRun, episodes: int, seed: int, video: Path | None = None) -> dict[str, Any]:
    """Measure returns, lengths and distances of whole episodes with the mean action; ``video`` films the first.

    Standard deviations are over episodes (population). ``distance_*`` is None where an episode has none.

    Raises:
      ConfigError: a video that cannot be made here; nothing was run.
      EnvStepError: the environment failed.
    """
    acting = jax.device_put(run.acting, jax.local_devices(backend="cpu")[0])
    given = (run.config.env, run.agent, make_decide(run.agent), acting, episodes, seed)
    longest = _longest_episode(run)
    if video is None:
        results = evaluate_policy(*given, most_steps=longest)
    else:
        require_rendering(run.config.env)
        with films.film(video, films.frames_per_second_of(run.config.env)) as add:
            results = evaluate_policy(*given, lambda env: add(env.render()), most_steps=longest)
    row: dict[str, Any] = {"env_steps": run.env_steps, "which": run.which, "seed": seed, "episodes": episodes}
    for name in ("return", "length", "distance"):
        values = getattr(results, f"{name}s")
        known = np.isfinite(values).all()
        row[f"{name}_mean"] = float(values.mean()) if known else None
        row[f"{name}_std"] = float(values.std()) if known else None
    return row | {physics.COLUMN: physics.todays_mujoco(run.config.env)}


def _longest_episode(run: OpenedRun) -> int:
    """Return the steps of the longest stored episode, by which a task without a time limit is known to end; else 0."""
    with contextlib.closing(tasks.make(run.config.env)) as env:
        if env.time_limit is not None:
            return 0
    try:
        t = run.transitions
    except ConfigError:  # parameters alone were kept of the run; that an episode is cut is said
        return 0
    ends = np.flatnonzero(t.terminals | t.truncations)
    return int(np.diff(ends, prepend=-1).max(initial=0))


def report_evaluation(run: OpenedRun, episodes: int, seed: int, video: Path | None = None) -> list[str]:
    """Evaluate, add a row to ``evaluations.csv``, and return lines that say the result.

    The last one says where the row was not added, and why: the episodes may have taken long.

    Raises:
      ConfigError, EnvStepError: see :func:`evaluate`.
    """
    row = evaluate(run, episodes, seed, video)
    count = f"{episodes} episode{'s' * (episodes != 1)}"
    lines = [
        title(run),
        f"return {row['return_mean']:.1f} ± {row['return_std']:.1f} over {count}, mean action",
        f"length {row['length_mean']:.1f} ± {row['length_std']:.1f} environment steps",
    ]
    if row["distance_mean"] is not None:
        lines.append(f"distance {row['distance_mean']:.2f} ± {row['distance_std']:.2f} m")
    if (warning := _other_physics(run, row[physics.COLUMN])) is not None:
        lines.append(warning)
    if video is not None:
        lines.append(f"video {video}")
    try:
        return [*lines, f"added to {append_evaluation(run, row)}"]
    except ConfigError as error:
        return [*lines, f"not added to {EVALUATIONS_FILE}: {error}"]


def _other_physics(run: OpenedRun, version: str) -> str | None:
    """Say that the run was trained under another physics than it was evaluated under."""
    trained = physics.version_of_run(RunFolder(run.folder).saved_environment())
    if version in (physics.NO_MUJOCO, trained):
        return None
    return f"warning: evaluated with MuJoCo {version}, trained with another physics ({physics.in_words(trained)})"


def append_evaluation(run: OpenedRun, row: Mapping[str, Any]) -> Path:
    """Add a row to ``evaluations.csv`` of the run folder (``eval.csv`` is the training's own); its path."""
    path = run.folder / EVALUATIONS_FILE
    strange = set(csv_columns(path)) - set(row)
    if strange:
        raise ConfigError(
            f"{path} has other columns ({', '.join(sorted(strange))}); allowed: a file that this command wrote, or none"
        )
    append_csv_row(path, row)
    return path


# --- imagine ---------------------------------------------------------------------------------------------------------


_ask = jax.jit(Policy.__call__)  # one program, not one per operation


def choose_film(run: OpenedRun, kind: FilmKind, out: Path) -> tuple[Path | None, str | None]:
    """Decide on the film of imagined trajectories: ``(its path or None, why there is none)``.

    Raises:
      ConfigError: a film was asked for that cannot be made here.
    """
    if kind == "none" or not run.has_simulator_states:
        return None, None
    try:
        require_rendering(run.config.env)
        films.SideBySide(run.config.env).close()
    except ConfigError as error:
        if kind is not None:
            raise
        return None, f"no film: {error}"
    return out / f"side_by_side.{kind or 'gif'}", None


def report_imagination(
    run: OpenedRun, out: Path, trajectories: int, seed: int, film: Path | None = None, shown: int = 5
) -> list[str]:
    """Imagine, measure, draw, and write all of it to ``out``; lines that say the results and where they are."""
    context_key, imagine_key, untrained_key = jax.random.split(jax.random.key(seed), 3)
    contexts = run.contexts(trajectories, context_key)
    segment = jax.device_get(run.imagine(contexts, imagine_key))
    lines, more = _report_actions(run, out, segment)
    replayed = _replayed(run, contexts, segment)
    if replayed is None:
        line = no_simulator_states(run.config.env, run.why_not_replayed)
        lines.append(f"{line}; no error against horizon, no film")
    else:
        more |= {"replayed_observations": replayed[0], "replayed_rewards": replayed[1]}
        lines += _report_errors(run, out, contexts, segment, replayed, imagine_key, untrained_key)
    export_segment(out / "trajectories.npz", segment, **more)
    lines += _report_diffusion(run, out, contexts, imagine_key)
    if film is not None:
        lines += _film(run, film, contexts, segment, shown)
    return [*lines, f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))}"]


def _replayed(run: OpenedRun, contexts: Segment, segment: Segment) -> tuple[np.ndarray, np.ndarray] | None:
    """Observations ``[B, H, O]`` and rewards ``[B, H - 1]`` of MuJoCo under the imagined actions; None without it."""
    if not run.has_simulator_states:
        return None
    states = run.simulator_states(contexts)
    return replay_actions(run.config.env, states, np.asarray(segment.actions)[:, :-1])[:2]


def _report_actions(run: OpenedRun, out: Path, segment: Segment) -> tuple[list[str], dict[str, np.ndarray]]:
    """The distribution of imagined actions under the policy, and the policy's mean and std at the imagined states."""
    if run.policy is None:
        return [f"agent {run.config.agent} reads latents: no distribution of actions at imagined observations"], {}
    mean, std = jax.device_get(_ask(run.policy, segment.observations))
    z = action_spread.standardised_actions(segment.actions, mean, std)
    spreads = [action_spread.spread_of(z), *(action_spread.spread_of(z[..., a]) for a in range(z.shape[-1]))]
    columns: dict[str, list[Any]] = {"action": ["all", *range(z.shape[-1])]}
    columns |= {name: [getattr(s, name) for s in spreads] for name in action_spread.Spread._fields}
    columns[physics.COLUMN] = [physics.todays_mujoco(run.config.env)] * len(spreads)
    write_text_atomically(out / "action_distribution.csv", csv_text(columns))
    figures.save(figures.action_distribution(z, title(run)), out / "action_distribution.png")
    s = spreads[0]
    lines = [
        f"standardised actions: std {s.std:.3f}, mean {s.mean:+.3f}, excess kurtosis {s.excess_kurtosis:+.2f}, "
        f"KS distance from N(0, 1) {s.ks_distance:.3f}"
    ]
    return lines, {"policy_mean": mean, "policy_std": std}


def _report_errors(
    run: OpenedRun,
    out: Path,
    contexts: Segment,
    segment: Segment,
    replayed: tuple[np.ndarray, np.ndarray],
    imagine_key: Any,
    untrained_key: Any,
) -> list[str]:
    """Error against horizon of the run's model, of 'nothing moves', and of a model that has learnt nothing."""
    beginner = run.untrained_state(untrained_key)
    untrained = jax.device_get(run.imagine(contexts, imagine_key, beginner))
    # Each against the simulator under its own actions.
    untrained_replayed = _replayed(run, contexts, untrained)
    predictions = {
        "imagined": (segment.observations, replayed[0]),
        "nothing moves": (staying_still(replayed[0]), replayed[0]),
        "untrained": (untrained.observations, untrained_replayed[0]),
    }
    errors = {name: action_spread.by_horizon(squared_errors(*pair)) for name, pair in predictions.items()}
    columns: dict[str, Any] = {"horizon": range(1, segment.observations.shape[1])}
    for name, error in errors.items():
        columns |= {f"{name.replace(' ', '_')}_{part}": values.tolist() for part, values in error._asdict().items()}
    columns[physics.COLUMN] = [physics.todays_mujoco(run.config.env)] * len(columns["horizon"])
    write_text_atomically(out / "error_against_horizon.csv", csv_text(columns))
    heading = f"{title(run)}\nmean and quartiles over {len(segment.rewards)} trajectories"
    figures.save(figures.error_against_horizon(errors, heading), out / "error_against_horizon.png")
    last = len(errors["imagined"].mean)
    reward = np.square(segment.rewards[:, 0] - replayed[1][:, 0]).mean()
    parts = [f"{name} {error.mean[0]:.4g} -> {error.mean[-1]:.4g}" for name, error in errors.items()]
    return [
        f"squared error per observation dimension, horizon 1 -> {last}: " + ", ".join(parts),
        f"squared error of the first reward: {reward:.4g}",
    ]


def _report_diffusion(run: OpenedRun, out: Path, contexts: Segment, key: Any) -> list[str]:
    """The strip; its trajectories are the film's and the errors' own where there are no more of those."""
    if not shows_diffusion(run) or run.policy is None:
        return [f"world model {run.config.world_model} does not diffuse: no diffusion strip"]
    few = jax.tree.map(lambda x: x[:STRIP_TRAJECTORIES], contexts)
    stages = diffuse(run, few, key)
    policy = jax.device_get(_ask(run.policy, stages.observations))
    replayed = None
    if run.has_simulator_states:
        states = run.simulator_states(few)[:1]
        replayed = replay_actions(run.config.env, states, stages.actions[-1, :1, :-1])[0][0]
    heading = (
        f"{title(run)}\nBlue: one trajectory; grey: others; orange: the policy's mean ± 2 std at the blue states"
        + ("" if replayed is None else "; dashed: the simulator under the finished actions")
    )
    figure = figures.diffusion_strip(
        stages.steps, stages.observations, stages.actions, policy, replayed, _observation_names(run), heading
    )
    figures.save(figure, out / "diffusion_strip.png")
    return []


def _observation_names(run: OpenedRun) -> dict[int, str]:
    """Two observation dimensions worth looking at, by name: the first position and the first velocity in MuJoCo."""
    env = tasks.make(run.config.env)
    env.reset(seed=0)
    base, holds = env.unwrapped, films.observation_holds(env) if run.has_simulator_states else None
    env.close()
    if holds is None:
        return {d: f"observation {d}" for d in range(min(2, run.spec.observation_size))}
    joints = [base.model.joint(j).name for j in range(base.model.njnt)]
    hidden = 1 if holds == "pose but x" else 0
    shown = base.model.nq - hidden
    positions = {0: f"{joints[hidden]}, position"} if shown else {}  # a single joint whose velocity alone is seen
    return positions | {shown: f"{joints[0]}, velocity"}


def _film(run: OpenedRun, path: Path, contexts: Segment, segment: Segment, shown: int) -> list[str]:
    """Left the simulator put into the imagined states, right the simulator under the same actions."""
    states, horizon = run.simulator_states(contexts), segment.observations.shape[1]
    stage = films.SideBySide(run.config.env)
    with films.film(path, FILM_FRAMES_PER_SECOND) as add:
        for b in range(shown):
            frames = stage.frames(segment.observations[b], segment.actions[b], states[b])
            for step, frame in enumerate(frames):
                left = f"imagined {b + 1}/{shown}, step {step}/{horizon - 1}"
                picture = films.captioned(frame, left, "MuJoCo, same actions")
                for _ in range(PAUSE_FRAMES if step in (0, horizon - 1) else 1):
                    add(picture)
    stage.close()
    return []


# --- plot ------------------------------------------------------------------------------------------------------------


def plot(run: SavedRun, out: Path) -> None:
    """Draw the training curves of a run, or of a world model alone.

    Raises:
      ConfigError: a name that is no figure's, or no metrics.
    """
    figures.check_figure_path(out)
    figures.save(figures.training_curves(run.rows, run.evaluations, _run_name(run)), out)
