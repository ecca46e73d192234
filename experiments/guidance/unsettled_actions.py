"""Does a causal denoiser that learns from unsettled actions imagine in fewer steps than the horizon has?

Guided actions settle by one state per diffusion step: a state is right once the actions before it are, and they are the
policy's at the states before. Under K < H steps the last actions and states are guesses still. Here the denoiser is
trained on guesses, to say at once where they settle. In half of the training windows the actions from a random state m
on are moved as far as the policy's mean moves from the window's states to guessed ones, ``a + mu(s') - mu(s)``. The
guesses ``s'`` are what the averaged denoiser predicts at the same diffusion step or a noisier one when it is shown
another window's actions from m on. (It sees the true actions before m and, through the noise, the true states, so that
these guesses are better than those of sampling in two or three steps.) The target is the window itself, settled.

Five ways to train:

- ``settled``: Algorithm 1;
- ``unsettled actions``: as above; the noisy trajectory that the denoiser sees is still made from the window;
- ``unsettled actions and states``: it is made from the guesses, as in sampling;
- ``unsettled states``: it is, and the actions are the window's own, so that no policy is asked;
- ``blind``: Algorithm 1 with all actions from another window. Such a denoiser imitates the recorded trajectories and
  knows nothing of actions: the null case, for what it reaches is no guidance.

The policy that guesses is the run's last, in training as in imagining: the best case, for in training an agent the
policy moves on. ``--guessing`` names the folder of another run, whose policy guesses in its place. The denoiser is
always shown actions as they are executed.

    python experiments/guidance/unsettled_actions.py RUN [RUN ...] --jobs 2 --threads 1 \\
        --out results/guidance/unsettled_actions
    python experiments/guidance/unsettled_actions.py --out results/guidance/unsettled_actions --figure-only

Columns of ``unsettled_actions.csv``: ``training`` as above; ``guessing``: the run whose policy guessed, where it is not
RUN; the others as in ``guidance_error.py``, whose measures these are. ``closed_h*`` is the error against MuJoCo under
the policy, ``open_h*`` against MuJoCo under the returned actions (large where those do not lead to the returned
states), ``given_h*`` that of the same denoiser told the policy's actions. ``fit_seconds`` is the time that the gradient
steps took, compiling included.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.guidance.guidance_error import TRAJECTORIES, measure
from experiments.guidance.rules_tried import RELAXED, Tried, relaxed, setting_of
from experiments.harness import experiment, figures, grid, opened_runs, statistics
from experiments.harness.grid import Row
from experiments.harness.guided_sampler import GuidedSampler
from experiments.harness.opened_runs import Fitted, OfRun, drawn_rows, fit
from polygrad_jax.analysis.opened_run import open_run, require_raw_policy
from polygrad_jax.config import Config, ConfigError, DenoiserOutput, EnvSpec
from polygrad_jax.data.normaliser import executed, normalise, unnormalise
from polygrad_jax.diffusion.denoising_loss import (
    Denoise,
    clean_from_output,
    denoising_loss,
    draw_steps_and_noise,
    pack,
    set_initial_state,
    with_terminal_std,
)
from polygrad_jax.diffusion.schedule import Coefficients, add_noise, training_coefficients
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Policy, Segment, WorldModel
from polygrad_jax.world_models.polygrad import PolyGRADState, descend, make_denoise, make_polygrad

SETTLED, ACTIONS, BOTH = "settled", "unsettled actions", "unsettled actions and states"
STATES, BLIND = "unsettled states", "blind"
TRAININGS = (SETTLED, ACTIONS, BOTH, STATES, BLIND)
ASK_A_POLICY = (ACTIONS, BOTH)
SHARE = 0.5
"""Share of the training windows that have guesses in them."""
STEPS = (2, 3, 4, 6, 8, 10, 16)
SIGMAS = {"1.0": 1.0, "0.1": 0.1, "0.02": 0.02}
WAYS = {
    "followed": Tried(relaxed(1.0), STEPS),
    "relaxed": Tried(RELAXED, STEPS),
}
"""Guidance ``correlated``: all of the way to the policy's action in every step, or half of it."""


# --- training --------------------------------------------------------------------------------------------------------


def at_steps(schedule: Coefficients, steps: Array) -> Coefficients:
    """Return the coefficients ``[B, 1, 1]`` of the steps ``[B]``."""
    return jax.tree.map(lambda x: x[steps][:, None, None], schedule)


class Guesses(NamedTuple):
    """Trajectories as the denoiser guesses them where it is shown another trajectory's actions."""

    traj: Array  # [B, H, O+2], normalised; the trajectory itself where it is not guessed
    late: Array  # [B, H, 1] bool: which states are guessed, those from a random one on


def guesses(
    denoise: Denoise,
    params: Params,
    normed_traj: Array,
    normed_actions: Array,
    steps: Array,
    key: Array,
    schedule: Coefficients,
    num_steps: int,
    prediction: DenoiserOutput,
    share: float = SHARE,
) -> Guesses:
    """Guess the later states in ``share`` of the trajectories. No gradient passes.

    A guess is what the denoiser predicts at the steps ``steps [B]`` or noisier ones when it is shown another
    trajectory's actions from a random state on.

    Args:
      normed_traj: ``[B, H, O+2]``, of which the first observation is given and stays.
      normed_actions: ``[B, H, A]``.
      schedule: coefficients of all N steps.
    """
    level_key, noise_key, first_key, share_key = jax.random.split(key, 4)
    initial, horizon = normed_traj[:, 0, :-2], normed_traj.shape[1]
    first = jax.random.randint(first_key, steps.shape, 0, horizon)
    is_guessed = jax.random.uniform(share_key, steps.shape) < share
    late = (is_guessed[:, None] & (jnp.arange(horizon)[None] >= first[:, None]))[..., None]

    noisier = jax.random.randint(level_key, steps.shape, steps, num_steps)
    c = at_steps(schedule, noisier)
    noisy = set_initial_state(add_noise(normed_traj, jax.random.normal(noise_key, normed_traj.shape), c), initial)
    actions = jnp.where(late, jnp.roll(normed_actions, 1, axis=0), normed_actions)
    output = denoise(params, noisy, c.sqrt_alpha_bar * actions, noisier)
    guess = set_initial_state(clean_from_output(output, noisy, initial, c, prediction), initial)
    return Guesses(jax.lax.stop_gradient(jnp.where(late, guess, normed_traj)), late)


def noise_to(guess: Array, normed_traj: Array, noise: Array, c: Coefficients) -> Array:
    """Return the noise that makes of the trajectory what ``noise`` makes of ``guess``, ``[B, H, O+2]`` all."""
    return noise + c.sqrt_alpha_bar / c.sqrt_one_minus_alpha_bar * (guess - normed_traj)


def guessed_actions(policy: Policy, raw_actions: Array, raw_obs: Array, guessed_obs: Array, late: Array) -> Array:
    """Return raw actions ``[B, H, A]``, moved as far as the policy's mean moves to the guessed states ``[B, H, O]``.

    ``late [B, H, 1]`` says where; elsewhere they stay. The distance from the policy's mean is kept: where the policy
    took the action, and its std is the same in both states, it is what the same draw gives there.
    """
    moved = policy(guessed_obs)[0] - policy(raw_obs)[0]
    return raw_actions + jnp.where(late, moved, 0.0)


def of_others(segment: Segment) -> Segment:
    """Return the segment with the actions of another window of its batch."""
    return segment.replace(actions=jnp.roll(segment.actions, 1, axis=0))


def make_unsettled(config: Config, spec: EnvSpec, policy: Policy, training: str, share: float = SHARE) -> WorldModel:
    """Return PolyGRAD trained in one of TRAININGS; ``policy`` is of raw observations.

    Raises:
      ConfigError: the denoiser predicts the noise, which would have to lead from a guess to the window.
    """
    model = make_polygrad(config, spec)
    if training == SETTLED:
        return model
    if training == BLIND:
        return model._replace(update=lambda state, segment, *rest: model.update(state, of_others(segment), *rest))
    if config.diffusion.prediction == "noise":
        raise ConfigError(f"diffusion.prediction is noise in training {training}; allowed: clean, change")
    denoise, schedule = make_denoise(config, config.horizon), training_coefficients(config.diffusion)
    num_steps, prediction, how = config.diffusion.num_steps, config.diffusion.prediction, config.env.actions

    def update(
        state: PolyGRADState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[PolyGRADState, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
        traj, actions = pack(segment.replace(actions=executed(segment.actions, how)), normaliser)
        steps, noise = draw_steps_and_noise(key, traj.shape, num_steps)
        # not 0 or 1, which are the keys that steps and noise come from: fold_in(key, i) is split(key)[i]
        asked = (traj, actions, steps, jax.random.fold_in(key, 2))
        guess = guesses(denoise, state.ema_params, *asked, schedule, num_steps, prediction, share)
        if training in ASK_A_POLICY:
            guessed_obs = unnormalise(guess.traj[..., :-2], normaliser.observations)
            raw = guessed_actions(policy, segment.actions, segment.observations, guessed_obs, guess.late)
            actions = jnp.where(guess.late, normalise(executed(raw, how), normaliser.actions), actions)
        if training in (BOTH, STATES):
            noise = noise_to(guess.traj, traj, noise, at_steps(schedule, steps))

        def loss(params: Params) -> tuple[Array, Metrics]:
            return denoising_loss(denoise, params, traj, actions, steps, noise, schedule, prediction)

        return descend(config, loss, state, segment, normaliser)

    return model._replace(update=update)


# --- the grid and the figure -----------------------------------------------------------------------------------------


def rows_of(options: argparse.Namespace, varied: OfRun) -> Iterator[Row]:
    """Train one denoiser in one way and measure it under every guidance, K and sigma; settled also untrained."""
    run, training = open_run(varied.run), varied.more
    config = opened_runs.config_of(run, options, "--denoiser.shown-actions", "executed")
    guessing = run
    if options.guessing:
        guessing = open_run(options.guessing)
        if guessing.config.env != run.config.env:
            allowed = f"of {run.config.env.name}, with the same fields of env"
            raise ConfigError(f"--guessing is {options.guessing}, a run of another task; allowed: a run {allowed}")
    model = make_unsettled(config, run.spec, require_raw_policy(guessing), training)
    began = time.perf_counter()
    fitted = fit(run, config, options.data_rows, options.updates, model)
    seconds = time.perf_counter() - began
    common = {"env": config.env.name, "seed": config.seed, "run_steps": run.env_steps, "rows": options.data_rows}
    common |= {"fields": options.fields, "training": training, "updates": options.updates, "fit_seconds": seconds}
    common |= {"guessing": name_of(options.guessing)}
    begins = drawn_rows(fitted.episodes, config.horizon)[:TRAJECTORIES]
    yield from (common | {"denoiser": "fitted"} | row for row in measured(fitted, begins, STEPS))
    if training == SETTLED:  # what is drawn is the same in all of them
        fitted.state = model.init(jax.random.key(0))
        untrained = measured(fitted, begins, STEPS[-1:])
        yield from (common | {"denoiser": "untrained", "updates": 0} | row for row in untrained)


def measured(fitted: Fitted, begins: np.ndarray, steps: tuple[int, ...]) -> Iterator[Row]:
    """Yield the columns of every guidance, K and sigma."""
    for (rule, tried), k in itertools.product(WAYS.items(), steps):
        labels, config, schedule, _ = setting_of(fitted.config, rule, tried, k)
        guided = GuidedSampler(fitted, config, schedule)
        for sigma, value in SIGMAS.items():
            std = np.full(fitted.run.spec.action_size, value, np.float32)
            columns, _ = measure(guided, begins, std, jnp.float32(0.0))
            yield labels | {"sigma": sigma} | columns


def name_of(run: Path | None) -> str:
    """Return the last two names of a run's folder; nothing of none."""
    return "" if run is None else f"{run.resolve().parent.name}-{run.resolve().name}"


STYLES = {SETTLED: "#0072B2", ACTIONS: "#D55E00", BOTH: "#009E73", STATES: "#CC79A7", BLIND: "#7F7F7F"}
LINES = {"followed": "o-", "relaxed": "^:"}
AHEAD = 9
ERRORS = {"closed": "under the policy", "open": "under the returned actions", "given": "told the policy's actions"}


def draw_panel(axis: Any, rows: list[grid.Row], error: str) -> None:
    """Draw one error of one task at one sigma against K."""
    for (training, colour), (rule, style) in itertools.product(STYLES.items(), LINES.items()):
        own = (r for r in rows if (r["training"], r["rule"]) == (training, rule))
        steps, errors = statistics.along(own, "sampling_steps", f"{error}_h{AHEAD}")
        if steps:
            figures.mean_and_range(axis, steps, errors, style, f"{training}; {rule}", colour, alpha=0.15)
    axis.set_yscale("log")
    figures.diffusion_steps_axis(axis, STEPS)


def draw(out: Path) -> None:
    """Draw ``unsettled_actions.png``: errors nine steps ahead against K; a row per task and error, a column per sigma.

    Where another run's policy guessed, and where nothing was trained, only the CSV says what came of it.
    """
    path = out / "unsettled_actions.csv"
    if not (rows := grid.read_measured(path, lambda r: r.get("denoiser") == "fitted" and not r["guessing"])):
        return
    tasks = list(dict.fromkeys(r["env"] for r in rows))
    lines = list(itertools.product(tasks, ERRORS))
    height = 2.2 * len(lines) + 1.4
    layout = {"size": (9.6, height), "rect": (0, 1.1 / height, 1, 1), "sharey": "row"}
    with figures.figure(out / "unsettled_actions.png", len(lines), len(SIGMAS), **layout) as (figure, axes):
        for line, (task, error) in zip(axes, lines, strict=True):
            for axis, sigma in zip(line, SIGMAS, strict=True):
                draw_panel(axis, [r for r in rows if (r["env"], r["sigma"]) == (task, sigma)], error)
                axis.set_title(f"{task}, sigma {sigma}", fontsize=9)
            line[0].set_ylabel(f"{ERRORS[error]} [var.]", fontsize=8)
        for axis in axes[-1]:
            axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)
        figures.legend_of_all(figure, loc="lower center", ncols=3, fontsize=7)
        made = ", ".join(f"{task}: {statistics.count_seeds(r for r in rows if r['env'] == task)}" for task in tasks)
        about = f"squared error {AHEAD} steps ahead; {rows[0]['updates']} updates; seeds of {made}"
        figure.suptitle(f"{about}; {grid.physics_of(rows)}", fontsize=8)


def cells(options: argparse.Namespace) -> dict[str, OfRun]:
    """Return the ways of training and the runs by the names of their cells.

    Raises:
      ConfigError: nothing to learn, or a policy to guess for a training that asks none.
    """
    if options.updates < 1:
        raise ConfigError(f"--updates is {options.updates}; allowed: 1 or more")
    if options.guessing is not None:
        opened_runs.require_run(options.guessing)
        if idle := [name for name in options.trainings if name not in ASK_A_POLICY]:
            allowed = " and ".join(ASK_A_POLICY)
            raise ConfigError(f"--trainings has {', '.join(idle)} with --guessing; allowed: {allowed}, which ask it")
    end = f"-guessed-by-{name_of(options.guessing)}" if options.guessing else ""
    return opened_runs.cells(options, ((f"-{name.replace(' ', '-')}{end}", name) for name in options.trainings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    opened_runs.add_arguments(parser)
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="only these (all)")
    parser.add_argument("--guessing", type=Path, default=None, help="run whose policy guesses in training (RUN itself)")


UNSETTLED_ACTIONS = experiment.Experiment(
    Path(__file__), __doc__, draw, cells, rows_of, add_arguments, labels=lambda varied: {"training": varied.more}
)

if __name__ == "__main__":
    sys.exit(experiment.run(UNSETTLED_ACTIONS))
