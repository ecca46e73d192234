"""Does a causal denoiser that learns from unsettled actions imagine in fewer steps than the horizon has?

Guided actions settle by one state per diffusion step: a state is right once the actions before it are, and they are the
policy's at the states before. Under K < H steps the last actions and states are guesses still. Here the denoiser is
trained on such guesses, to say at once where they settle. Of SHARE of the training windows the actions from a random
state m on are replaced by what the policy would have chosen at predicted states, ``a + mu(s') - mu(s)`` (its draw
stays); ``s'`` is what the averaged denoiser predicts from a noisier trajectory when it is shown another window's
actions from m on. The target is the window itself, settled.

Four ways to train:

- ``settled``: Algorithm 1, the null case;
- ``unsettled actions``: the noisy trajectory that the denoiser sees is still made from the settled window, which shows
  through the noise;
- ``unsettled actions and states``: it is made from the guesses s', as in sampling;
- ``unsettled states``: it is, and the actions are the window's own, so that no policy is asked.

The policy that guesses actions is the run's last, in training as in imagining: the best case, for in training an agent
the policy moves on. ``--guessing`` names the folder of another run, whose policy guesses in its place.

    python experiments/guidance/unsettled_actions.py RUN [RUN ...] --jobs 2 --threads 1 \\
        --out results/guidance/unsettled_actions
    python experiments/guidance/unsettled_actions.py --out results/guidance/unsettled_actions --figure-only

Columns of ``unsettled_actions.csv``: ``training`` as above; ``guessing``: the run whose policy guessed, where it is not
RUN; the others as in ``guidance_error.py``, whose measures these are: ``closed_h*`` is against MuJoCo under the policy,
``given_h*`` the error of the same denoiser when it is told those actions. ``fit_seconds``: of the gradient steps,
compiling included.
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
import optax

from experiments.guidance.guidance_error import TRAJECTORIES, measure
from experiments.guidance.rules_tried import RELAXED, Tried, relaxed, setting_of
from experiments.harness import experiment, figures, grid, opened_runs, statistics
from experiments.harness.grid import Row
from experiments.harness.guided_sampler import GuidedSampler
from experiments.harness.opened_runs import Fitted, OfRun, drawn_rows, recorded_episodes
from polygrad_jax.analysis.opened_run import open_run, require_raw_policy
from polygrad_jax.config import Config, DenoiserOutput, EnvSpec
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
from polygrad_jax.optimising import stepped
from polygrad_jax.training import fitting
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Policy, Segment, WorldModel
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.polygrad import PolyGRADState, average, make_denoise, make_polygrad

SETTLED, ACTIONS, BOTH = "settled", "unsettled actions", "unsettled actions and states"
STATES = "unsettled states"
TRAININGS = (SETTLED, ACTIONS, BOTH, STATES)
SHARE = 0.5
"""Of the windows in which actions are unsettled."""
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
    """Trajectories as the denoiser guesses them where it does not know the actions."""

    traj: Array  # [B, H, O+2], normalised; the trajectory itself where it is not guessed
    late: Array  # [B, H, 1] bool: which states are guessed


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

    A guess is what the denoiser predicts at a noisier step than ``steps [B]`` when it is shown another trajectory's
    actions from a random state on: what the last step of sampling left behind, before the actions moved.

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
    """Return raw actions ``[B, H, A]`` as the policy would have chosen them at guessed states, by the same draw.

    ``late [B, H, 1]`` says where; elsewhere they stay. The draw ``(a - mu(s)) / sigma`` is kept and the std taken as
    the same in both states.
    """
    moved = policy(guessed_obs)[0] - policy(raw_obs)[0]
    return raw_actions + jnp.where(late, moved, 0.0)


def make_unsettled(config: Config, spec: EnvSpec, policy: Policy, training: str, share: float = SHARE) -> WorldModel:
    """Return PolyGRAD trained in one of TRAININGS; ``policy`` is of raw observations."""
    model = make_polygrad(config, spec)
    if training == SETTLED:
        return model
    denoise, schedule = make_denoise(config, config.horizon), training_coefficients(config.diffusion)
    adam, how = optax.adam(config.denoiser.learning_rate), config.env.actions
    num_steps, prediction = config.diffusion.num_steps, config.diffusion.prediction

    def update(
        state: PolyGRADState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[PolyGRADState, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
        traj, actions = pack(segment.replace(actions=executed(segment.actions, how)), normaliser)
        steps, noise = draw_steps_and_noise(key, traj.shape, num_steps)
        asked = (traj, actions, steps, jax.random.fold_in(key, 1))
        guess = guesses(denoise, state.ema_params, *asked, schedule, num_steps, prediction, share)
        if training in (ACTIONS, BOTH):
            guessed_obs = unnormalise(guess.traj[..., :-2], normaliser.observations)
            raw = guessed_actions(policy, segment.actions, segment.observations, guessed_obs, guess.late)
            actions = jnp.where(guess.late, normalise(executed(raw, how), normaliser.actions), actions)
        if training in (BOTH, STATES):
            noise = noise_to(guess.traj, traj, noise, at_steps(schedule, steps))

        def loss(params: Params) -> tuple[Array, Metrics]:
            return denoising_loss(denoise, params, traj, actions, steps, noise, schedule, prediction)

        gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
        params, adam_state = stepped(adam, gradients, state.params, state.adam)
        classifier = state.classifier
        if classifier is not None:
            classifier, more = terminal_classifier.update(classifier, segment, normaliser, how)
            metrics |= more
        return state.replace(
            params=params,
            ema_params=average(state.ema_params, params, state.updates, config.denoiser.ema_decay),
            adam=adam_state,
            updates=state.updates + 1,
            classifier=classifier,
        ), metrics

    return model._replace(update=update)


# --- the grid and the figure -----------------------------------------------------------------------------------------


def rows_of(options: argparse.Namespace, varied: OfRun) -> Iterator[Row]:
    """Train one denoiser in one way and measure it under every guidance, K and sigma; settled also untrained."""
    run, training = open_run(varied.run), varied.more
    config = opened_runs.config_of(run, options, "--denoiser.shown-actions", "executed")
    guessing = require_raw_policy(open_run(options.guessing) if options.guessing else run)
    model = make_unsettled(config, run.spec, guessing, training)
    episodes = recorded_episodes(run, options.data_rows)
    began = time.perf_counter()
    state, normaliser = fitting.fit(model, episodes, config, jax.random.key(0), options.updates)
    seconds = time.perf_counter() - began
    fitted = Fitted(run, config, state, with_terminal_std(normaliser, config.diffusion.terminal_std), episodes)
    common = {"env": config.env.name, "seed": config.seed, "run_steps": run.env_steps, "rows": options.data_rows}
    common |= {"fields": options.fields, "training": training, "updates": options.updates, "fit_seconds": seconds}
    common |= {"guessing": options.guessing.name if options.guessing else ""}
    begins = drawn_rows(episodes, config.horizon)[:TRAJECTORIES]
    yield from (common | {"denoiser": "fitted"} | row for row in measured(fitted, begins, STEPS))
    if training == SETTLED:
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


STYLES = {SETTLED: "#0072B2", ACTIONS: "#D55E00", BOTH: "#009E73", STATES: "#CC79A7"}
LINES = {"followed": "o-", "relaxed": "^:"}
AHEAD = 9


def draw_panel(axis: Any, rows: list[grid.Row]) -> None:
    """Draw the error of one task at one sigma against K."""
    fitted = [r for r in rows if r["denoiser"] == "fitted" and not r.get("guessing")]
    for training, colour in STYLES.items():
        for rule, style in LINES.items():
            own = (r for r in fitted if (r["training"], r["rule"]) == (training, rule))
            steps, errors = statistics.along(own, "sampling_steps", f"closed_h{AHEAD}")
            if steps:
                figures.mean_and_range(axis, steps, errors, style, f"{training}; {rule}", colour, alpha=0.15)
    null = [float(r[f"closed_h{AHEAD}"]) for r in rows if r["denoiser"] == "untrained"]
    if null:
        axis.axhline(min(null), color="0.5", linewidth=1, linestyle="--", label="untrained, K = 16, the best")
    axis.set_yscale("log")
    figures.diffusion_steps_axis(axis, STEPS)


def draw(out: Path) -> None:
    """Draw ``unsettled_actions.png``: the error nine steps ahead against K; a row per task, a column per sigma."""
    rows = grid.read_csv(out / "unsettled_actions.csv")
    rows = [r for r in rows if r.get("denoiser")]
    if not rows:
        print("unsettled_actions: nothing was measured: no figure")
        return
    tasks = list(dict.fromkeys(r["env"] for r in rows))
    height = 2.7 * len(tasks) + 1.4
    layout = {"size": (9.6, height), "rect": (0, 1.1 / height, 1, 1), "sharey": "row"}
    with figures.figure(out / "unsettled_actions.png", len(tasks), len(SIGMAS), **layout) as (figure, axes):
        for (i, task), (j, sigma) in itertools.product(enumerate(tasks), enumerate(SIGMAS)):
            draw_panel(axes[i, j], [r for r in rows if (r["env"], r["sigma"]) == (task, sigma)])
            axes[i, j].set_title(f"{task}, sigma {sigma}", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"closed-loop error, {AHEAD} ahead [var.]", fontsize=8)
        figures.legend_of_all(figure, loc="lower center", ncols=3, fontsize=7)
        figure.suptitle(grid.physics_of(rows), fontsize=8)


def cells(options: argparse.Namespace) -> dict[str, OfRun]:
    """Return the ways of training and the runs by the names of their cells."""
    end = f"-guessed-by-{options.guessing.resolve().parent.name}-{options.guessing.name}" if options.guessing else ""
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
