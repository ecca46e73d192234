"""A world in which everything PolyGRAD approximates is known in closed form.

The system is linear, ``s' = F s + G a + process noise``, its reward is linear and it never ends; the policy is
linear-Gaussian, ``a = K s + b + sigma xi``. Trajectories are then Gaussian, the optimal denoiser
``E[x_0 | x_t, actions]`` is a matrix, and the sampler without its clips is an affine map of its draws: output
covariances are exact, without Monte Carlo. Everything here is NumPy in float64 and knows the package only by its
types; ``python tests/oracle.py`` (with the package on the path) prints :func:`on_policy_table`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

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
    """Chen's cosine schedule and the posterior of the forward process, 0-based, written here a second time."""

    alpha_bar: np.ndarray  # [N]
    clean: np.ndarray  # weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)
    noisy: np.ndarray  # weight of x_t
    std: np.ndarray


def cosine_schedule(num_steps: int, tau: float) -> Schedule:
    u = np.arange(num_steps + 1) / num_steps
    curve = np.cos(u * np.pi / 2) ** (2 * tau)
    curve = (curve - curve[-1]) / (1 - curve[-1])
    alpha = np.maximum(curve[1:] / curve[:-1], 1e-3)
    alpha_bar = np.cumprod(alpha)
    before = np.append(1.0, alpha_bar[:-1])
    return Schedule(
        alpha_bar=alpha_bar,
        clean=np.sqrt(before) * (1 - alpha) / (1 - alpha_bar),
        noisy=np.sqrt(alpha) * (1 - before) / (1 - alpha_bar),
        std=np.sqrt((1 - before) / (1 - alpha_bar) * (1 - alpha)),
    )


def optimal_denoiser(
    system: System, normed_data: Affine, schedule: Schedule, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """``gain [N, D, D + HA]`` and ``offset [N, D]``: ``E[x_0 | input] = offset + gain @ input``, D = H (O + 2).

    The input is what Algorithm 1 shows the network: the noisy trajectory with its first observation clean, then the
    clean actions times sqrt(alpha_bar).
    """
    observations, actions = system.sizes
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
        gain = np.linalg.solve(seen.cov + np.diag(noise), cross.T).T
        gains.append(gain)
        offsets.append(normed_data.offset[:size] - gain @ seen.offset)
    return np.stack(gains), np.stack(offsets)


# --- the sampler, by hand --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Everything that one run of Algorithm 2 without clipping needs, and nothing from the package."""

    system: System
    behaviour: LinearPolicy
    policy: LinearPolicy
    horizon: int
    num_steps: int
    tau: float
    delta: float
    initial: np.ndarray  # [O] raw

    @property
    def stats(self) -> Statistics:
        return statistics(self.system, trajectories(self.system, self.behaviour, self.horizon), self.horizon)

    @property
    def schedule(self) -> Schedule:
        return cosine_schedule(self.num_steps, self.tau)

    @property
    def normed_initial(self) -> np.ndarray:
        observations = self.system.sizes[0]
        return (self.initial - self.stats.mean[:observations]) / self.stats.std[:observations]

    def denoiser(self) -> tuple[np.ndarray, np.ndarray]:
        data = trajectories(self.system, self.behaviour, self.horizon)
        return optimal_denoiser(self.system, normalised(data, self.stats, self.horizon), self.schedule, self.horizon)

    def on_policy(self) -> Affine:
        """The truth, normalised and flat: what a perfect world model would imagine from ``initial``."""
        raw = trajectories(self.system, self.policy, self.horizon, self.initial)
        return normalised(raw, self.stats, self.horizon)


def recursion(problem: Problem, denoiser: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of Algorithm 2's output, normalised and flat, step by step.

    One step maps ``z = (trajectory, actions)`` to ``M z + m`` plus independent noise, so that
    ``mean -> M mean + m`` and ``cov -> M cov M^T + noise``.
    """
    system, policy, stats, schedule = problem.system, problem.policy, problem.stats, problem.schedule
    gains, offsets = problem.denoiser() if denoiser is None else denoiser
    (observations, actions), horizon = system.sizes, problem.horizon
    size, acted = horizon * (observations + 2), horizon * actions

    keep = np.eye(size)
    keep[:observations, :observations] = 0.0
    initial = np.concatenate([problem.normed_initial, np.zeros(size - observations)])
    # raw policy mean of all states = mean_gain @ (normalised trajectory) + mean_offset
    to_mean = np.concatenate([policy.K * stats.std[:observations], np.zeros((actions, 2))], axis=1)
    mean_gain = np.kron(np.eye(horizon), to_mean)
    mean_offset = np.tile(policy.K @ stats.mean[:observations] + policy.b, horizon)
    action_std, action_mean = np.tile(stats.action_std, horizon), np.tile(stats.action_mean, horizon)
    strength = problem.delta / np.tile(policy.std, horizon) ** 2

    mean, cov = np.zeros(size + acted), np.eye(size + acted)
    for t in reversed(range(problem.num_steps)):
        root = np.sqrt(schedule.alpha_bar[t])
        # x with the initial state, and the clean trajectory, as functions of z
        x, x0 = np.hstack([keep, np.zeros((size, acted))]), initial
        gain_x, gain_a = gains[t][:, :size], gains[t][:, size:]
        clean = keep @ (gain_x @ x + np.hstack([np.zeros((size, size)), root * gain_a]))
        clean0 = keep @ (gain_x @ x0 + offsets[t]) + initial
        a = np.hstack([np.zeros((acted, size)), np.eye(acted)])
        a0 = np.zeros(acted)
        if t > 0:  # a + delta (mean - a) / std^2 in raw units, back to normalised ones
            pull = (strength / action_std)[:, None]
            a = a + pull * (mean_gain @ clean - action_std[:, None] * a)
            a0 = pull[:, 0] * (mean_gain @ clean0 + mean_offset - action_mean)
        step = np.vstack([schedule.clean[t] * clean + schedule.noisy[t] * x, a])
        step0 = np.concatenate([schedule.clean[t] * clean0 + schedule.noisy[t] * x0, a0])
        mean = step @ mean + step0
        cov = step @ cov @ step.T + schedule.std[t] ** 2 * np.eye(size + acted)
    last = np.eye(size + acted)
    last[:size, :size] = keep
    return last @ mean + np.concatenate([initial, np.zeros(acted)]), last @ cov @ last.T


def sigma(problem: Problem, mean: np.ndarray, cov: np.ndarray) -> float:
    """Eq. 10's standard deviation in the limit of many trajectories: over batch and time, last action excluded."""
    system, policy, stats, horizon = problem.system, problem.policy, problem.stats, problem.horizon
    observations, actions = system.sizes
    to_mean = np.concatenate([policy.K * stats.std[:observations], np.zeros((actions, 2))], axis=1)
    residual = np.hstack([-np.kron(np.eye(horizon), to_mean), np.diag(np.tile(stats.action_std, horizon))])
    constant = np.tile(stats.action_mean - policy.K @ stats.mean[:observations] - policy.b, horizon)
    scale = np.tile(policy.std, horizon)
    means = ((residual @ mean + constant) / scale).reshape(horizon, actions)[:-1]
    variances = (np.diag(residual @ cov @ residual.T) / scale**2).reshape(horizon, actions)[:-1]
    return float(np.sqrt(variances.mean(0) + means.var(0)).mean())


def tuned(problem: Problem) -> Problem:
    """The problem with the smallest delta at which sigma is 1, where the controller of Eq. 10 comes to rest."""
    denoiser = problem.denoiser()

    def sigma_at(delta: float) -> float:
        return sigma(problem, *recursion(dataclasses.replace(problem, delta=delta), denoiser))

    variance = float(np.min(problem.policy.std) ** 2)
    grid = variance * np.geomspace(1e-3, 1.0, 40)
    above = [sigma_at(delta) > 1 for delta in grid]
    first = next(i for i in range(1, len(grid)) if above[i - 1] and not above[i])
    low, high = grid[first - 1], grid[first]
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if sigma_at(middle) > 1 else (low, middle)
    return dataclasses.replace(problem, delta=float(low))


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


def on_policy_table() -> list[dict[str, float]]:
    """How far the paper's rule, with delta tuned to sigma = 1, is from the truth: a property of the method."""
    rows = []
    for f, k in [(1.1, 0.0), (1.1, -0.3), (1.1, -0.6), (1.2, -0.4), (0.9, -0.3), (1.1, 0.1)]:
        for policy_std in (0.2, 0.5, 1.0):
            for num_steps, tau in [(16, 0.1), (128, 0.1), (128, 1.0)]:
                row = {"f": f, "k": k, "policy_std": policy_std, "num_steps": num_steps, "tau": tau}
                try:
                    problem = tuned(scalar_problem(f, k, policy_std, num_steps, tau))
                except StopIteration:  # no delta gives sigma = 1
                    rows.append(row | {"delta_over_variance": np.nan, "ratio": np.nan})
                    continue
                ratio = float(last_state_ratio(problem, recursion(problem)[1])[0])
                rows.append(row | {"delta_over_variance": problem.delta / policy_std**2, "ratio": ratio})
    return rows


if __name__ == "__main__":
    table = on_policy_table()
    print("  ".join(f"{name:>10.10}" for name in table[0]))
    for row in table:
        print("  ".join(f"{value:10.4g}" for value in row.values()))
