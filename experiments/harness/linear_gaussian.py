"""A world in which everything PolyGRAD approximates is known in closed form.

The system is linear, ``s' = F s + G a + process noise``, its reward is linear and it never ends; the policy is
linear-Gaussian, ``a = K s + b + sigma xi``. Trajectories are then Gaussian, the optimal denoiser
``E[x_0 | x_t, actions]`` is a matrix, and the sampler without its clips is an affine map of its draws: output
covariances are exact, without Monte Carlo. Everything here is NumPy in float64 and knows the package only by its
types. The tests hold the package against it; ``oracle_study.py`` asks it how right each guidance rule is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize

# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """``s' = F s + G a + process_std * w``, ``reward = reward_state s + reward_action a``, terminal always 0."""

    F: np.ndarray  # [O, O]
    G: np.ndarray  # [O, A]
    process_std: np.ndarray  # [O]
    reward_state: np.ndarray  # [O]
    reward_action: np.ndarray  # [A]
    initial_mean: np.ndarray  # [O] of the data
    initial_std: np.ndarray  # [O] of the data

    @property
    def sizes(self) -> tuple[int, int]:
        return self.G.shape


@dataclass(frozen=True)
class LinearPolicy:
    """``a = K s + b + std * xi``, raw units."""

    K: np.ndarray  # [A, O]
    b: np.ndarray  # [A]
    std: np.ndarray  # [A]


@dataclass(frozen=True)
class Affine:
    """``offset + matrix @ u`` for standard normal u: a Gaussian, with the way it is made."""

    offset: np.ndarray
    matrix: np.ndarray

    @property
    def cov(self) -> np.ndarray:
        return self.matrix @ self.matrix.T


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations of trajectory channels ``[O + 2]`` and actions ``[A]``."""

    mean: np.ndarray
    std: np.ndarray
    action_mean: np.ndarray
    action_std: np.ndarray


def scalar_system(f: float, g: float = 1.0, process_std: float = 0.0) -> System:
    """One state, one action."""
    one = np.ones(1)
    return System(f * np.eye(1), g * np.eye(1), process_std * one, one, 0.5 * one, 0.3 * one, one)


def two_state_system(process_std: float) -> System:
    """A point pushed along a line by one action, slightly unstable, in units that are far from standardised."""
    return System(
        F=np.array([[1.05, 0.4], [0.1, 0.9]]),
        G=np.array([[0.1], [0.7]]),
        process_std=process_std * np.array([1.0, 0.5]),
        reward_state=np.array([0.3, -1.0]),
        reward_action=np.array([0.2]),
        initial_mean=np.array([2.0, -0.5]),
        initial_std=np.array([1.5, 0.4]),
    )


def rollout(
    system: System, policy: LinearPolicy, horizon: int, u: np.ndarray, initial: np.ndarray | None
) -> np.ndarray:
    """One trajectory, flat: ``[H, O + 2]`` (state, reward, terminal), then ``[H, A]``.

    ``u`` are its standard normal draws: of the initial state (unused where ``initial`` is given), of the policy and
    of the process, for every time.
    """
    observations, actions = system.sizes
    start, u = u[:observations], u[observations:].reshape(horizon, observations + actions)
    s = system.initial_mean + system.initial_std * start if initial is None else initial
    traj, taken = [], []
    for xi, w in zip(u[:, :actions], u[:, actions:], strict=True):
        a = policy.K @ s + policy.b + policy.std * xi
        traj.append([*s, system.reward_state @ s + system.reward_action @ a, 0.0])
        taken.append(a)
        s = system.F @ s + system.G @ a + system.process_std * w
    return np.concatenate([np.ravel(traj), np.ravel(taken)])


def trajectories(system: System, policy: LinearPolicy, horizon: int, initial: np.ndarray | None = None) -> Affine:
    """The distribution of raw trajectories under ``policy``, from ``initial [O]`` or from the data's initial states."""
    size = sum(system.sizes) * horizon + system.sizes[0]
    offset = rollout(system, policy, horizon, np.zeros(size), initial)
    columns = [rollout(system, policy, horizon, u, initial) - offset for u in np.eye(size)]
    return Affine(offset, np.stack(columns, axis=1))


def statistics(system: System, data: Affine, horizon: int) -> Statistics:
    """What a replay full of ``data`` would standardise with; the terminal, always 0, gets a deviation of 1."""
    split = horizon * (system.sizes[0] + 2)

    def pooled(columns: slice, width: int) -> tuple[np.ndarray, np.ndarray]:
        means = data.offset[columns].reshape(horizon, width)
        variances = np.diag(data.cov)[columns].reshape(horizon, width)
        variance = variances.mean(0) + means.var(0)
        return means.mean(0), np.where(variance > 0, np.sqrt(variance), 1.0)

    return Statistics(*pooled(slice(split), system.sizes[0] + 2), *pooled(slice(split, None), system.sizes[1]))


def normalised(x: Affine, stats: Statistics, horizon: int) -> Affine:
    """A distribution of flat trajectories in the units of ``stats``."""
    mean = np.concatenate([np.tile(stats.mean, horizon), np.tile(stats.action_mean, horizon)])
    std = np.concatenate([np.tile(stats.std, horizon), np.tile(stats.action_std, horizon)])
    return Affine((x.offset - mean) / std, x.matrix / std[:, None])


# --- the optimal denoiser --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The K steps that are sampled, 0-based and ascending: weights of the mean of x_{t-1}, and what noise is added."""

    step: np.ndarray  # [K] of the N
    alpha_bar: np.ndarray  # [K]
    clean: np.ndarray  # weight of x_0
    noisy: np.ndarray  # weight of x_t
    std: np.ndarray  # of the states' noise
    action_std: np.ndarray  # of the noise of guided actions


def cosine_schedule(
    num_steps: int,
    tau: float,
    sampling_steps: int | None = None,
    eta: float = 1.0,
    steps: tuple[int, ...] | None = None,
) -> Schedule:
    """Chen's cosine schedule, a second time, with DDIM's eta: strided like the package's, or at ``steps``."""
    u = np.arange(num_steps + 1) / num_steps
    curve = np.cos(u * np.pi / 2) ** (2 * tau)
    curve = (curve - curve[-1]) / (1 - curve[-1])
    alpha_bar = np.cumprod(np.maximum(curve[1:] / curve[:-1], 1e-3))
    kept = sampling_steps or num_steps
    step = np.rint(np.arange(kept) * (num_steps - 1) / max(kept - 1, 1)).astype(int) if kept > 1 else [num_steps - 1]
    step = step if steps is None else np.array(steps)
    now = alpha_bar[step]
    before = np.append(1.0, now[:-1])
    variance = (1 - before) * (1 - now / before) / (1 - now)
    noisy = np.sqrt((1 - before - eta**2 * variance) / (1 - now))
    return Schedule(
        step=np.asarray(step),
        alpha_bar=now,
        clean=np.sqrt(before) - np.sqrt(now) * noisy,
        noisy=noisy,
        std=eta * np.sqrt(variance),
        action_std=np.sqrt(variance),
    )


def optimal_denoiser(
    system: System, normed_data: Affine, schedule: Schedule, horizon: int, causal: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """``gain [K, D, D + HA]`` and ``offset [K, D]``: ``E[x_0 | input] = offset + gain @ input``, D = H (O + 2).

    The input is what Algorithm 1 shows the network: the noisy trajectory with its first observation clean, then the
    clean actions times sqrt(alpha_bar). With ``causal``, what stands at time k is estimated from times up to k alone,
    as by the paper's transformer at best.
    """
    observations, actions = system.sizes
    times = np.concatenate([np.repeat(np.arange(horizon), observations + 2), np.repeat(np.arange(horizon), actions)])
    size = horizon * (observations + 2)
    is_noisy = np.ones(size)
    is_noisy[:observations] = 0.0
    gains, offsets = [], []
    for alpha_bar in schedule.alpha_bar:
        root = np.sqrt(alpha_bar)
        scale = np.concatenate([np.where(is_noisy == 1, root, 1.0), np.full(horizon * actions, root)])
        noise = np.concatenate([is_noisy * (1 - alpha_bar), np.zeros(horizon * actions)])
        seen = Affine(scale * normed_data.offset, scale[:, None] * normed_data.matrix)
        cross = normed_data.matrix[:size] @ seen.matrix.T
        total, gain = seen.cov + np.diag(noise), np.zeros_like(cross)
        for time in range(horizon) if causal else ():
            known, wanted = np.flatnonzero(times <= time), np.flatnonzero(times[:size] == time)
            gain[np.ix_(wanted, known)] = np.linalg.solve(total[np.ix_(known, known)], cross[np.ix_(wanted, known)].T).T
        if not causal:
            gain = np.linalg.solve(total, cross.T).T
        gains.append(gain)
        offsets.append(normed_data.offset[:size] - gain @ seen.offset)
    return np.stack(gains), np.stack(offsets)


# --- the sampler, by hand --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Everything that one run of Algorithm 2 without clipping needs, and nothing from the package.

    The sampler is affine in its draws under the rules ``no_clipping`` (``score`` without its clip), ``preconditioned``
    and ``correlated``.
    """

    system: System
    behaviour: LinearPolicy
    policy: LinearPolicy
    horizon: int
    num_steps: int
    tau: float
    delta: float
    initial: np.ndarray  # [O] raw
    rule: str = "no_clipping"
    rho: float = 1.0
    relaxation: float = 1.0
    sampling_steps: int | None = None  # K; all N if None
    steps: tuple[int, ...] | None = None  # which K, ascending; evenly spread if None
    eta: float = 1.0
    causal: bool = False  # whether the denoiser sees earlier times only
    known_stats: Statistics | None = None  # those of the data, where many problems share them

    @property
    def stats(self) -> Statistics:
        if self.known_stats is not None:
            return self.known_stats
        return statistics(self.system, trajectories(self.system, self.behaviour, self.horizon), self.horizon)

    @property
    def schedule(self) -> Schedule:
        return cosine_schedule(self.num_steps, self.tau, self.sampling_steps, self.eta, self.steps)

    @property
    def normed_initial(self) -> np.ndarray:
        observations = self.system.sizes[0]
        return (self.initial - self.stats.mean[:observations]) / self.stats.std[:observations]

    def denoiser(self) -> tuple[np.ndarray, np.ndarray]:
        data = trajectories(self.system, self.behaviour, self.horizon)
        normed = normalised(data, self.stats, self.horizon)
        return optimal_denoiser(self.system, normed, self.schedule, self.horizon, self.causal)

    def on_policy(self) -> Affine:
        """The truth, normalised and flat: what a perfect world model would imagine from ``initial``."""
        raw = trajectories(self.system, self.policy, self.horizon, self.initial)
        return normalised(raw, self.stats, self.horizon)


@dataclass(frozen=True)
class PolicyMap:
    """The policy's raw mean as an affine map of the flat normalised trajectory, and units of the flat actions."""

    gain: np.ndarray  # [H A, H (O + 2)]
    offset: np.ndarray  # [H A]
    std: np.ndarray  # of the policy, [H A]
    action_std: np.ndarray  # of the normaliser, [H A]
    action_mean: np.ndarray


def policy_map(problem: Problem) -> PolicyMap:
    policy, stats, horizon = problem.policy, problem.stats, problem.horizon
    observations, actions = problem.system.sizes
    to_mean = np.concatenate([policy.K * stats.std[:observations], np.zeros((actions, 2))], axis=1)
    return PolicyMap(
        gain=np.kron(np.eye(horizon), to_mean),
        offset=np.tile(policy.K @ stats.mean[:observations] + policy.b, horizon),
        std=np.tile(policy.std, horizon),
        action_std=np.tile(stats.action_std, horizon),
        action_mean=np.tile(stats.action_mean, horizon),
    )


class Returned(NamedTuple):
    """Algorithm 2's output, normalised and flat: ``[H (O + 2) + H A]``."""

    mean: np.ndarray
    cov: np.ndarray
    last_change: np.ndarray  # [H A]: root mean square of what the last step did to the actions, normalised units


class _Step(NamedTuple):
    """A diffusion step as the affine map ``y -> matrix y + offset + noise u`` of y = (trajectory, actions, residuals).

    The residuals are those of the rule ``correlated``; under the others they stay what they were drawn as.
    """

    matrix: np.ndarray
    offset: np.ndarray
    noise: np.ndarray


def _steps(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray]) -> Iterator[_Step]:
    """The maps of all steps, in the order of the run; the initial state is written in by each of them."""
    schedule, pi = problem.schedule, policy_map(problem)
    gains, offsets = denoiser
    (observations, actions), horizon = problem.system.sizes, problem.horizon
    size, acted = horizon * (observations + 2), horizon * actions
    keep = np.eye(size)
    keep[:observations, :observations] = 0.0
    initial = np.concatenate([problem.normed_initial, np.zeros(size - observations)])
    strength = problem.delta / (1.0 if problem.rule == "preconditioned" else pi.std**2)
    of_x = np.hstack([keep, np.zeros((size, 2 * acted))])
    of_a = np.hstack([np.zeros((acted, size)), np.eye(acted), np.zeros((acted, acted))])
    of_r = np.hstack([np.zeros((acted, size + acted)), np.eye(acted)])
    for t in reversed(range(len(schedule.step))):
        # the clean trajectory as an affine map of y, the initial state written in
        gain_x, gain_a = gains[t][:, :size], gains[t][:, size:]
        clean = np.hstack([gain_x * np.diag(keep), np.sqrt(schedule.alpha_bar[t]) * gain_a, np.zeros((size, acted))])
        clean[:observations] = 0.0
        clean0 = keep @ (gain_x @ initial + offsets[t]) + initial
        a, a0, r = of_a, np.zeros(acted), of_r
        noise_a, noise_r = schedule.action_std[t] * np.eye(acted), np.zeros((acted, acted))
        if problem.rule == "correlated":  # a = mu + sigma r in raw units, back to normalised ones
            rho, share = (problem.rho, problem.relaxation) if t > 0 else (1.0, 1.0)
            r, noise_r = rho * of_r, np.sqrt(1 - rho**2) * np.eye(acted)
            a = (1 - share) * of_a + share * (pi.gain @ clean + pi.std[:, None] * r) / pi.action_std[:, None]
            a0 = share * (pi.gain @ clean0 + pi.offset - pi.action_mean) / pi.action_std
            noise_a = share * (pi.std / pi.action_std)[:, None] * noise_r
        elif t > 0:  # a + delta (mu - a) / sigma^2
            pull = (strength / pi.action_std)[:, None]
            a = of_a + pull * (pi.gain @ clean - pi.action_std[:, None] * of_a)
            a0 = pull[:, 0] * (pi.gain @ clean0 + pi.offset - pi.action_mean)
        noise = np.zeros((size + 2 * acted, size + acted))
        noise[:size, :size] = schedule.std[t] * np.eye(size)
        noise[size:, size:] = np.vstack([noise_a, noise_r])
        yield _Step(
            np.vstack([schedule.clean[t] * clean + schedule.noisy[t] * of_x, a, r]),
            np.concatenate([schedule.clean[t] * clean0 + schedule.noisy[t] * initial, a0, np.zeros(acted)]),
            noise,
        )


def returned(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray] | None = None) -> Returned:
    """What Algorithm 2 returns, step by step: ``mean -> M mean + m`` and ``cov -> M cov M^T + L L^T``."""
    (observations, actions), horizon = problem.system.sizes, problem.horizon
    size, acted = horizon * (observations + 2), horizon * actions
    start = np.vstack([np.eye(size + acted), np.eye(acted, size + acted, size)])  # residuals begin as the actions
    mean, cov = np.zeros(size + 2 * acted), start @ start.T
    moved = slice(size, size + acted)
    for step in _steps(problem, problem.denoiser() if denoiser is None else denoiser):
        by = step.matrix[moved] - np.eye(acted, size + 2 * acted, size)
        change = np.square(by @ mean + step.offset[moved]) + np.einsum("ij,jk,ik->i", by, cov, by)
        change += np.square(step.noise[moved]).sum(1)
        mean = step.matrix @ mean + step.offset
        cov = step.matrix @ cov @ step.matrix.T + step.noise @ step.noise.T
    last = np.eye(size + acted, size + 2 * acted)
    last[:observations] = 0.0
    initial = np.concatenate([problem.normed_initial, np.zeros(size + acted - observations)])
    return Returned(last @ mean + initial, last @ cov @ last.T, np.sqrt(np.maximum(change, 0.0)))  # rounding


def recursion(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of :func:`returned`."""
    return returned(problem, denoiser)[:2]


def standardised(problem: Problem, mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``z = (a - mu(s)) / sigma`` of every time: means ``[H A]``, covariance, and covariance with the trajectory."""
    pi, size = policy_map(problem), problem.horizon * (problem.system.sizes[0] + 2)
    residual = np.hstack([-pi.gain, np.diag(pi.action_std)]) / pi.std[:, None]
    constant = (pi.action_mean - pi.offset) / pi.std
    return residual @ mean + constant, residual @ cov @ residual.T, residual @ cov[:, :size]


def sigma(problem: Problem, mean: np.ndarray, cov: np.ndarray) -> float:
    """Eq. 10's standard deviation in the limit of many trajectories: over batch and time, last action excluded."""
    z_mean, z_cov, _ = standardised(problem, mean, cov)
    shape = (problem.horizon, problem.system.sizes[1])
    means, variances = z_mean.reshape(shape)[:-1], np.diag(z_cov).reshape(shape)[:-1]
    return float(np.sqrt(variances.mean(0) + means.var(0)).mean())


def tuned(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray] | None = None, tries: int = 16) -> Problem | None:
    """The problem with the smallest delta at which sigma is 1, where the controller of Eq. 10 comes to rest.

    None where no delta of the grid of ``tries``, up to the variance of the policy, has sigma below 1.
    """
    known = problem.denoiser() if denoiser is None else denoiser

    def excess(log_delta: float) -> float:
        there = dataclasses.replace(problem, delta=float(np.exp(log_delta)))
        return np.log(sigma(there, *recursion(there, known)))

    variance = 1.0 if problem.rule == "preconditioned" else float(np.min(problem.policy.std) ** 2)
    low, *others = np.log(variance * np.geomspace(1e-3, 1.0, tries))
    if excess(low) <= 0:
        return None
    for high in others:
        if excess(high) <= 0:
            root = scipy.optimize.brentq(excess, low, high, xtol=1e-9, rtol=1e-9)
            return dataclasses.replace(problem, delta=float(np.exp(root)))
        low = high
    return None


def action_to_action(
    problem: Problem, step: int = 0, denoiser: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """What a change of the actions does to the policy's mean at the states that a step predicts (0: the least noisy).

    ``[H A, H A]`` in raw units: the linear part of one turn of actions to states to actions. Without process noise it
    is strictly lower triangular by blocks, so that its H-th power is zero whatever its size; with noise and a causal
    denoiser lower triangular, since an action tells about the state that it answered.
    """
    pi, (gains, _) = policy_map(problem), problem.denoiser() if denoiser is None else denoiser
    size = problem.horizon * (problem.system.sizes[0] + 2)
    gain_a = gains[step][:, size:] * np.sqrt(problem.schedule.alpha_bar[step])
    gain_a[: problem.system.sizes[0]] = 0.0  # the initial state is given
    return pi.gain @ gain_a / pi.action_std


def gains_of_a_run(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """How far the returned actions move, in stds of the policy, per std of what the run began with, and of its noise.

    Largest singular values of the linear part of the whole run: first from the random trajectory and actions at its
    beginning (0 where the run forgets them), then from all noise that its states are given on the way. The draws that
    ``correlated`` keeps are in neither: actions have to follow those.
    """
    (observations, actions), horizon = problem.system.sizes, problem.horizon
    size, acted = horizon * (observations + 2), horizon * actions
    pi = policy_map(problem)
    steps = list(_steps(problem, denoiser))
    to_actions = np.zeros((acted, size + 2 * acted))
    to_actions[:, size : size + acted] = np.diag(pi.action_std / pi.std)
    noise = np.zeros((acted, acted))
    for step in reversed(steps):
        of_states = to_actions @ step.noise[:, :size]
        noise += of_states @ of_states.T
        to_actions = to_actions @ step.matrix
    return float(np.linalg.norm(to_actions[:, : size + acted], 2)), float(np.sqrt(np.linalg.norm(noise, 2)))


def last_state(problem: Problem) -> slice:
    """Where the last state's observations are in a flat trajectory."""
    start = (problem.horizon - 1) * (problem.system.sizes[0] + 2)
    return slice(start, start + problem.system.sizes[0])


def last_state_ratio(problem: Problem, cov: np.ndarray) -> np.ndarray:
    """Variance of the last state in ``cov`` over that of the true on-policy trajectories, ``[O]``."""
    at = last_state(problem)
    return np.diag(cov)[at] / np.diag(problem.on_policy().cov)[at]


def scalar_problem(
    f: float, k: float, policy_std: float, num_steps: int, tau: float, horizon: int = 10, process_std: float = 0.0
) -> Problem:
    """``s' = f s + a`` under ``a = k s + policy_std xi``; the data are actions of deviation 1 whatever the state."""
    behaviour = LinearPolicy(np.zeros((1, 1)), np.zeros(1), np.ones(1))
    policy = LinearPolicy(np.full((1, 1), k), np.zeros(1), np.full(1, policy_std))
    system = scalar_system(f, process_std=process_std)
    return Problem(system, behaviour, policy, horizon, num_steps, tau, 0.05 * policy_std**2, np.zeros(1))
