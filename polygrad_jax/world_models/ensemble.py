"""The probabilistic MLP ensemble (paper, Appendix C.2), rolled out step by step: each member gives a Gaussian over the
next state, and every imagined step asks one of the best members.

The networks and the loss are those of MBPO (Janner et al. 2019, after PETS, Chua et al. 2018): 7 members of 4 x 200,
swish, learned bounds of the log-variance, decay by layer, Adam at 1e-3, the 5 members of the lowest held-out loss
imagine. ``networks/probabilistic_mlp.py`` is one member; here they are one pytree with a leading axis ``E``.

DEVIATION from MBPO and from its PyTorch version, which the paper used (github.com/Xingyu-Lin/mbpo_pytorch):

- Training takes one gradient step at a time on what the replay holds then, as the protocol asks. MBPO stops collecting
  every 250 steps, trains all members until none improves on held-out data, and keeps each member's best epoch.
- The bootstrap is drawn for every batch. MBPO draws one from all data for each training; the PyTorch version draws none
  (each member shuffles the data for itself). As a companion (``companion.py``) ours draws halves of the batch instead.
- The held-out transitions follow from their row numbers and never train during a run; their loss is a running average
  over updates. MBPO splits at random for every training, so that every transition trains at some time.
- Channels are changes of normalised observations, and normalised rewards, so that units do not matter. MBPO
  standardises the inputs only. Actions span [-1, 1] already and are not standardised, but clipped or squashed as when
  executed.
- Every member has its own bounds of the log-variance. MBPO's members share them; the PyTorch version does not learn
  them.
- Terminals are classified, by a head of every member; MBPO is given each environment's rule. The head judges state and
  action, not the next state: the replay does not store the state in which an episode ended.
- For the same reason the step that ended an episode teaches its reward and its terminal, but no next state; MBPO
  learns that too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from polygrad_jax.config import Config, ConfigError, EnsembleConfig, EnvSpec, Execution
from polygrad_jax.data.normaliser import executed, normalise, unnormalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.networks.probabilistic_mlp import GaussianPrediction, ProbabilisticMLP
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Policy, Prediction, Segment, WorldModel
from polygrad_jax.world_models.rollout import begin, roll_out, under

WINDOW = 2
"""States per training window: one whole transition each, drawn uniformly as MBPO does; longer ones would fill a batch
with neighbours. The second state's reward is learnt from too, and its terminal where it ends the episode: no window
begins with an episode's end, unless the episode ends at its first step."""
HELDOUT_SHARE = 0.1
"""Share of all transitions that never train."""
HELDOUT_DECAY = 0.99
"""Decay per gradient step of the held-out losses' running average."""
BOUND_WEIGHT = 0.01
"""Of the distance between the bounds of the log-variance, in the loss (MBPO)."""


@flax.struct.dataclass
class EnsembleState:
    """Everything the ensemble learns."""

    params: Params  # every leaf [E, ...]
    adam: Any
    heldout_error: Array  # [E] running sum of squared errors
    heldout_steps: Array  # [] running sum of how many those were


class Lesson(NamedTuple):
    """What the steps of a batch teach, ``D = O + 1`` channels: the change of the observation, and the reward."""

    inputs: Array  # [B, H, O + A]
    targets: Array  # [B, H, D] normalised
    terminals: Array  # [B, H]
    known: Array  # [B, H, D] 1 where the target is what the environment did
    judged: Array  # [B, H] 1 where the terminal is learnt from


# --- what a batch teaches --------------------------------------------------------------------------------------------


def inputs_of(raw_obs: Array, raw_actions: Array, normaliser: Normaliser, how: Execution) -> Array:
    """``[..., O]`` and ``[..., A]`` to ``[..., O + A]``: normalised observations, actions as they are executed."""
    return jnp.concatenate([normalise(raw_obs, normaliser.observations), executed(raw_actions, how)], axis=-1)


def lesson_of(segment: Segment, normaliser: Normaliser, how: Execution) -> Lesson:
    """What windows ``[B, H]`` in raw units teach.

    The last state has no successor here, and the one behind a terminal is padding: those changes are not known. Windows
    of two have every step of an episode twice, as their first and as their second one, but for its last step, which is
    a second one alone: unless the other second ones were left out, ends would be learnt at half their odds. Windows of
    H have it in H - 1 in place of H, whatever learns from them: nine tenths at a horizon of ten.
    """
    observations = normalise(segment.observations, normaliser.observations)
    changes = jnp.pad(observations[:, 1:] - observations[:, :-1], ((0, 0), (0, 1), (0, 0)))
    rewards = normalise(segment.rewards[..., None], normaliser.rewards)
    taken = happened(segment.terminals)
    judged = taken.at[:, 1].multiply(segment.terminals[:, 1]) if taken.shape[1] == WINDOW else taken
    followed = (taken * (1.0 - segment.terminals)).at[:, -1].set(0.0)
    return Lesson(
        inputs=inputs_of(segment.observations, segment.actions, normaliser, how),
        targets=jnp.concatenate([changes, rewards], axis=-1),
        terminals=segment.terminals,
        known=jnp.concatenate([jnp.repeat(followed[..., None], changes.shape[-1], -1), taken[..., None]], axis=-1),
        judged=judged,
    )


def held_out(rows: Array, share: float) -> Array:
    """Bool, as ``rows``: whether the transition of that row never trains.

    The fractional part of row * 0.618... is below ``share``; that is spread most evenly over consecutive rows (Knuth,
    The Art of Computer Programming, 6.4: Fibonacci hashing), and falls into step with no gait.
    """
    return rows.astype(jnp.uint32) * jnp.uint32(2654435769) < jnp.uint32(int(share * 2**32))


def bootstrap(key: Array, members: int, shape: tuple[int, int]) -> Array:
    """``[E, B, H]``: how often each member draws each step, of as many draws with replacement as there are steps."""
    steps = shape[0] * shape[1]
    drawn = jax.random.randint(key, (members, steps), 0, steps, jnp.int32)
    counts = jax.vmap(lambda indices: jnp.zeros(steps, jnp.float32).at[indices].add(1.0))(drawn)
    return counts.reshape(members, *shape)


def halves(key: Array, members: int, size: int) -> Array:
    """``[E, max(size // 2, 1)]``: the half of a batch that each member learns from, none of it twice."""
    keys = jax.random.split(key, members)
    return jax.vmap(lambda key: jax.random.permutation(key, size)[: max(size // 2, 1)].astype(jnp.int32))(keys)


# --- the loss of one member ------------------------------------------------------------------------------------------


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean over the first two axes; 0 where all weights are 0 (they count draws: 0, 1, 2, ...)."""
    return (weights * values).sum((0, 1)) / jnp.maximum(weights.sum((0, 1)), 1.0)


def gaussian_loss(prediction: GaussianPrediction, targets: Array, weights: Array) -> Array:
    """Twice the negative log-likelihood without its constant, as MBPO has it: the mean over channels ``[B, H, D]`` of
    each one's mean over the steps that count (PETS, Section 4: ``loss_Gauss``)."""
    errors = jnp.square(prediction.mean - targets) * jnp.exp(-prediction.log_var) + prediction.log_var
    return weighted_mean(errors, weights).mean()


def regularisation(params: Params, weight_decay: float) -> Array:
    """Decay of one member's weights and the price of wide bounds of its log-variance.

    Half the squared weights count ``weight_decay`` in the heads and 1/4, 1/2, 3/4, 3/4, ... of it in the hidden layers:
    with 1e-4, MBPO's 2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4. Biases do not decay.
    """
    layers = {name: layer["kernel"] for name, layer in params.items() if "log_var" not in name}
    shares = {"hidden_0": 0.25, "hidden_1": 0.5, "output": 1.0, "terminal": 1.0}
    decays = [shares.get(name, 0.75) * 0.5 * jnp.square(kernel).sum() for name, kernel in layers.items()]
    return weight_decay * sum(decays) + BOUND_WEIGHT * (params["max_log_var"] - params["min_log_var"]).sum()


def heldout_losses(state: EnsembleState) -> Array:
    """``[E]``: the running mean of the squared error of each member's mean, over channels and held-out steps, in
    normalised units; 0 while nothing was held out."""
    return state.heldout_error / jnp.maximum(state.heldout_steps, jnp.finfo(jnp.float32).tiny)


def elites_of(state: EnsembleState, elites: int) -> Array:
    """The members of the lowest held-out loss, best first, ``[elites] int32``."""
    return jnp.argsort(heldout_losses(state))[:elites].astype(jnp.int32)


# --- the world model -------------------------------------------------------------------------------------------------


def make_network(config: Config, spec: EnvSpec) -> ProbabilisticMLP:
    """One member."""
    c = config.ensemble
    return ProbabilisticMLP(spec.observation_size + 1, c.hidden_size, c.hidden_layers, config.precision)


def in_chunks(x: Array, chunk: int) -> Array:
    """``[B, H, ...]`` to ``[H // chunk, B, chunk, ...]``, without the last states where it does not divide H."""
    count = x.shape[1] // chunk
    parts = x[:, : count * chunk].reshape(x.shape[0], count, chunk, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0)


def make_ensemble(config: Config, spec: EnvSpec, chunk: int | None = None) -> WorldModel:
    """The ensemble behind the protocol of :class:`WorldModel`.

    Args:
      chunk: states of each window that one gradient step learns from, so that long windows give several steps; None
        takes one step on all. In such steps every member sees half of the batch (:func:`halves`) in place of a
        bootstrap: as many independent draws (a bootstrap's n weigh like n / 2) at half of the work.

    ``update`` takes windows of any length and raises ConfigError where they have no row numbers.
    """
    network = make_network(config, spec)
    adam = optax.adam(config.ensemble.learning_rate)

    def predict_one(params: Params, inputs: Array) -> GaussianPrediction:
        return network.apply({"params": params}, inputs)

    def init(key: Array) -> EnsembleState:
        inputs = jnp.zeros((1, spec.observation_size + spec.action_size))
        keys = jax.random.split(key, config.ensemble.members)
        params = jax.vmap(lambda key: network.init(key, inputs)["params"])(keys)
        errors = jnp.zeros(config.ensemble.members)
        return EnsembleState(params, adam.init(params), heldout_error=errors, heldout_steps=jnp.zeros(()))

    def update(
        state: EnsembleState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[EnsembleState, Metrics]:
        if segment.rows is None:
            raise ConfigError("segment.rows is None; allowed: row numbers [B, H], by which steps are held out")
        lesson = lesson_of(segment, normaliser, config.env.actions)
        held = held_out(segment.rows, HELDOUT_SHARE).astype(jnp.float32)
        if chunk is None:
            state, metrics = descend(state, (lesson, held, key))
        else:
            parts = jax.tree.map(lambda x: in_chunks(x, chunk), (lesson, held))
            keys = jax.random.split(key, segment.terminals.shape[1] // chunk)
            state, metrics = jax.lax.scan(descend, state, (*parts, keys))
        losses = heldout_losses(state)
        return state, jax.tree.map(jnp.mean, metrics) | {
            "world_model/heldout_loss": losses[elites_of(state, config.ensemble.elites)].mean(),
            "world_model/heldout_loss_worst": losses.max(),
        }

    def descend(state: EnsembleState, given: tuple[Lesson, Array, Array]) -> tuple[EnsembleState, Metrics]:
        """Take one gradient step on a lesson ``[B, H]``, of which ``held [B, H]`` only measures."""
        lesson, held, key = given
        members, each = config.ensemble.members, None
        if chunk is None:
            counts = bootstrap(key, members, held.shape) * (1.0 - held)[None]
        else:
            chosen, each = halves(key, members, held.shape[0]), 0
            lesson, held = jax.tree.map(lambda x: x[chosen], (lesson, held))
            counts = 1.0 - held

        def learn(params: Params, counts: Array, lesson: Lesson, held: Array) -> tuple[Array, tuple[Metrics, Array]]:
            return _member_loss(predict_one(params, lesson.inputs), params, lesson, counts, held, config.ensemble)

        learn_all = jax.vmap(jax.grad(learn, has_aux=True), in_axes=(0, 0, each, each))
        gradients, (metrics, errors) = learn_all(state.params, counts, lesson, held)
        params, adam_state = stepped(adam, gradients, state.params, state.adam)
        decay, heldout_steps = HELDOUT_DECAY, (held * lesson.known[..., 0]).sum()
        if chunk is not None:
            heldout_steps /= members  # their mean: halves differ by little
        state = EnsembleState(
            params=params,
            adam=adam_state,
            heldout_error=decay * state.heldout_error + errors,
            heldout_steps=decay * state.heldout_steps + heldout_steps,
        )
        return state, metrics

    def outcome(said: GaussianPrediction, raw_obs: Array, normaliser: Normaliser, key: Array) -> Prediction:
        """Draw what follows ``[B]`` from what one member said of each state; of terminals return the probability."""
        drawn = said.mean + jnp.exp(0.5 * said.log_var) * jax.random.normal(key, said.mean.shape)
        following = raw_obs + drawn[:, :-1] * normaliser.observations.std[None]
        rewards = unnormalise(drawn[:, -1:], normaliser.rewards)[:, 0]
        return Prediction(following, rewards, jax.nn.sigmoid(said.terminal_logit))

    def ask(
        state: EnsembleState, raw_obs: Array, raw_actions: Array, normaliser: Normaliser, key: Array
    ) -> tuple[Prediction, Metrics]:
        """Ask an elite drawn for every state; the metrics are ``[B]``."""
        elites = elites_of(state, config.ensemble.elites)
        params = jax.tree.map(lambda x: x[elites], state.params)
        elite_key, noise_key = jax.random.split(key)
        inputs = inputs_of(raw_obs, raw_actions, normaliser, config.env.actions)
        predictions = jax.vmap(predict_one, in_axes=(0, None))(params, inputs)
        batch = raw_obs.shape[0]
        chosen = jax.random.randint(elite_key, (batch,), 0, elites.shape[0], jnp.int32)
        said = jax.tree.map(lambda x: x[chosen, jnp.arange(batch)], predictions)
        predicted = outcome(said, raw_obs, normaliser, noise_key)
        more_likely_than_not = (said.terminal_logit > 0).astype(jnp.float32)
        return predicted._replace(terminals=more_likely_than_not), {
            # What more data would tell apart, and what a member says no data would; normalised units, over channels.
            "imagination/disagreement": predictions.mean[..., :-1].std(axis=0).mean(-1),
            "imagination/predicted_std": jnp.exp(0.5 * said.log_var)[:, :-1].mean(-1),
        }

    def step(
        state: EnsembleState, raw_obs: Array, raw_actions: Array, normaliser: Normaliser, key: Array
    ) -> Prediction:
        """Ask one elite per state, each as many: blocks of the batch, dealt to the elites anew in every call.

        A fraction of the work of :func:`ask`, which needs every elite's word for its metrics.
        """
        elites, params = config.ensemble.elites, state.params
        if elites < config.ensemble.members:
            best = elites_of(state, elites)
            params = jax.tree.map(lambda x: x[best], params)
        deal_key, noise_key = jax.random.split(key)
        deal = jax.random.permutation(deal_key, elites)
        batch, each = raw_obs.shape[0], -(-raw_obs.shape[0] // elites)
        inputs = jnp.pad(
            inputs_of(raw_obs, raw_actions, normaliser, config.env.actions), ((0, each * elites - batch), (0, 0))
        )
        predictions = jax.vmap(predict_one)(params, inputs.reshape(elites, each, -1)[deal])
        back = jnp.argsort(deal)
        said = jax.tree.map(lambda x: x[back].reshape(-1, *x.shape[2:])[:batch], predictions)
        return outcome(said, raw_obs, normaliser, noise_key)

    def imagine(
        state: EnsembleState, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        def predict(_: None, raw_obs: Array, actions: Array, key: Array) -> tuple[None, Prediction, Metrics]:
            return None, *ask(state, raw_obs, actions, normaliser, key)

        keys = jax.random.split(key, config.horizon)
        _, segment, metrics = roll_out(predict, begin(context, None), under(policy), keys)
        return segment, metrics

    return WorldModel(init, update, imagine, step=step, window=WINDOW)


def _member_loss(
    prediction: GaussianPrediction, params: Params, lesson: Lesson, counts: Array, held: Array, config: EnsembleConfig
) -> tuple[Array, tuple[Metrics, Array]]:
    """``(loss, (metrics, sum of held-out squared errors))`` of one member; ``counts [B, H]`` are its draws."""
    gaussian = gaussian_loss(prediction, lesson.targets, counts[..., None] * lesson.known)
    entropy = optax.sigmoid_binary_cross_entropy(prediction.terminal_logit, lesson.terminals)
    terminal = weighted_mean(entropy, counts * lesson.judged)
    loss = gaussian + terminal + regularisation(params, config.weight_decay)
    # Steps of which every channel is known, so that one number of steps serves all.
    errors = (held * lesson.known[..., 0] * jnp.square(prediction.mean - lesson.targets).mean(-1)).sum()
    metrics = {"world_model/loss": loss, "world_model/gaussian_loss": gaussian, "world_model/terminal_loss": terminal}
    return loss, (metrics, errors)
