"""The whole loop in this process: what it learns on an easy task, how it stops when learning diverges."""

import csv
import dataclasses
import functools
import json
from types import SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from events import read_events

from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import INSERT_CHUNK, ConfigError, EnvSpec, cpu, override, smoke, validate
from polygrad_jax.data import replay as replays
from polygrad_jax.data.transition_log import TransitionLogError
from polygrad_jax.envs import rendering
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, load_npz
from polygrad_jax.runs.saved_run import read_evaluations
from polygrad_jax.training import collecting, loop
from polygrad_jax.training.collecting import Chunk, empty_chunk
from polygrad_jax.training.evaluating import evaluate_policy, evaluation_row, evaluation_seed
from polygrad_jax.training.loop import Interval, NonFiniteError, crossed, train
from polygrad_jax.training.step import compile_learn, make_model_update, make_steps
from polygrad_jax.training.train_state import Counters, TrainState
from polygrad_jax.world_models.model_table import make_world_model

POLE = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"


def small(env="hopper", **loop_fields):
    fields = {"total_env_steps": 1_600, "eval_every_env_steps": 400, "checkpoint_every_env_steps": 200} | loop_fields
    return validate(override(smoke(env), {f"loop.{name}": value for name, value in fields.items()}))


def steps_of(config, spec):
    world_model = make_world_model(config, spec)
    return make_steps(config, spec, world_model, make_agent(config, spec, world_model))


def test_multiples_are_crossed_once():
    assert [s for s in range(6, 31, 4) if crossed(s - 4, s, 10)] == [10, 22, 30]


def test_a_run_writes_what_it_did_and_never_traces_twice(readme_run):
    config, folder, result = readme_run.config, readme_run.folder, readme_run.names["result"]
    assert sorted(readme_run.traced) == ["finish", "finite", "improve_model", "improve_policy", "report_warmup"]
    assert result.stopped_by is None
    assert config.loop.total_env_steps <= result.env_steps < config.loop.total_env_steps + 4
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    assert last["env_steps"] == result.env_steps
    prefill = result.env_steps - last["env_steps/without_prefill"]
    assert prefill >= config.loop.prefill_env_steps
    # one policy update per 4 environment steps after the warm-up, 4 denoiser updates beside it from the start
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    stored = checkpoints.read(checkpoints.steps()[-1])
    arrays, host = stored.arrays, stored.host
    checkpoints.close()
    iterations = (result.env_steps - prefill) // 4
    warmup = -(-config.model_training.warmup_env_steps // 4)
    assert arrays["train_state/policy_updates"] == iterations - warmup
    assert arrays["train_state/model_updates"] == 4 * iterations
    assert arrays["train_state/replay/total"] == result.env_steps
    with open(folder / "eval.csv", newline="") as file:
        evaluations = list(csv.DictReader(file))
    assert float(evaluations[-1]["return_mean"]) == pytest.approx(result.last_return)
    best = load_npz(folder / "best.npz")
    assert max(float(e["return_mean"]) for e in evaluations) == pytest.approx(host["counters"]["best_return"])
    assert best["agent"]["actor"]["log_std"].shape == (3,)
    kept = [*best["agent"], *best["world_model"]]
    assert not [name for name in kept if name.endswith(("adam", "optimiser"))]
    # the error of imagined trajectories is there for every horizon, and it grows
    errors = [last[f"error/observation_mse_{h:03d}"] for h in range(1, config.horizon)]
    assert errors[-1] > errors[0] > 0


add = jax.jit(replays.add, static_argnums=2)


@pytest.mark.skipif(
    all(rendering.missing_packages(b) for b in ("egl", "osmesa")), reason="no GL library to render with"
)
def test_the_evaluation_at_each_checkpoint_is_filmed(readme_run):
    images = read_events(readme_run.folder).Images("evaluation/first_episode [x: env steps]")
    evaluated = read_evaluations(readme_run.folder)["env_steps"].tolist()
    assert [image.step for image in images] == evaluated and len(evaluated) > 1
    assert images[0].encoded_image_string.startswith(b"GIF")


def noise_rows(count):
    noise = np.random.default_rng(0)
    rows = empty_chunk(count, EnvSpec(observation_size=4, action_size=1))
    rows.observations[:], rows.actions[:] = noise.standard_normal((count, 4)), noise.uniform(-3, 3, (count, 1))
    rows.rewards[:], rows.valid[:] = noise.standard_normal(count), True
    rows.terminals[49::50] = 1.0
    return rows


@pytest.fixture(scope="module")
def learn_from_noise():
    """Two steps of learning from noise, compiled ``side_by_side`` or not: programs, log delta before each, outputs."""
    config, rows = small("inverted_pendulum"), noise_rows(200)
    chunk = jax.tree.map(lambda x: x[:4], rows)

    @functools.cache
    def learnt(side_by_side):
        steps = steps_of(config, EnvSpec(observation_size=4, action_size=1))
        state = jax.jit(steps.insert)(jax.jit(steps.init)(), rows)
        compiled = compile_learn(steps, state, chunk, side_by_side)
        log_deltas, outputs = [], []
        for _ in range(2):
            log_deltas.append(float(state.world_model.log_delta))
            state, output = compiled.step(state, chunk)
            outputs.append(output)
        return len(compiled.programs), log_deltas, state, outputs

    return config, learnt


def test_every_part_of_an_iteration_draws_from_a_key_of_its_own(monkeypatch):
    """Of one key, the noise of one part would be the noise of another: fold_in(key, i) is split(key)[i]."""
    config, spec = small("inverted_pendulum"), EnvSpec(observation_size=4, action_size=1)
    world_model, seen = make_world_model(config, spec), {}
    agent = make_agent(config, spec, world_model)

    def noting(name, function, position):
        def noted(*arguments, **named):
            seen[name] = jax.random.key_data(arguments[position])
            return function(*arguments, **named)

        return noted

    monkeypatch.setattr(replays, "sample", noting("windows", replays.sample, 1))
    monkeypatch.setattr(replays, "sample_contexts", noting("contexts", replays.sample_contexts, 1))
    agent = agent._replace(
        imagine=noting("imagine", agent.imagine, 4), update=noting("update", agent.update, 3), windows=(2, 3)
    )
    steps = make_steps(config, spec, world_model, agent)
    state = steps.insert(jax.jit(steps.init)(), noise_rows(200))

    @jax.jit  # the keys alone are compiled
    def keys_of(policy_updates):
        steps.improve_policy(state.replace(policy_updates=policy_updates))
        return dict(seen)

    used = [{name: tuple(np.asarray(key).tolist()) for name, key in keys_of(jnp.int32(k)).items()} for k in (0, 1)]
    assert used[0].keys() == {"windows", "contexts", "imagine", "update"}
    assert len({key for keys in used for key in keys.values()}) == 8


def test_side_by_side_the_numbers_are_those_of_one_program(learn_from_noise):
    _, learnt = learn_from_noise
    (one, _, state, outputs), (several, _, other_state, other_outputs) = learnt(False), learnt(True)
    output, other_output = outputs[-1], other_outputs[-1]
    assert one == 1 and several > 1
    assert int(state.policy_updates) == int(other_state.policy_updates) == 2
    assert int(state.model_updates) == int(other_state.model_updates) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), state, other_state)
    assert output.metrics.names == other_output.metrics.names
    assert np.array_equal(output.finite, other_output.finite) and output.finite.all()


def test_delta_adapts_to_the_imagination_that_the_policy_learnt_from(learn_from_noise):
    config, learnt = learn_from_noise
    _, log_deltas, _, outputs = learnt(False)
    sigma = outputs[0].metrics.by_name()["guidance/sigma"]
    assert abs(sigma - 1) > 1e-3
    assert log_deltas[1] - log_deltas[0] == pytest.approx(config.guidance.delta_lr * (sigma - 1), abs=1e-6)


def test_a_row_holds_means_over_its_interval():
    interval = Interval()
    interval.add({"world_model/loss": 1.0})
    interval.add({"world_model/loss": 2.0, "agent/std": 4.0}, counts={"guidance/standardised_histogram": np.ones(40)})
    interval.add({"world_model/loss": 9.0}, steps=2, counts={"guidance/standardised_histogram": np.ones(40)})
    means, histograms = interval.take()
    assert means == {"world_model/loss": 12.0 / 4, "agent/std": 4.0}  # (1 + 2 + 9) over 1 + 1 + 2 steps
    assert histograms["guidance/standardised_actions"].counts.tolist() == [2] * 40
    assert interval.take() == ({}, {})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_one_update_honours_recent_share(share):
    """Of a replay whose older half has rewards of 0 and whose newer half has 1, the newest windows have 1 alone."""
    spec = EnvSpec(observation_size=4, action_size=1)
    config = override(small("inverted_pendulum"), {"model_training.recent_share": share})
    config = override(config, {"model_training.recent_windows": 40, "model_training.batch_size": 64})
    rows = noise_rows(200)
    rows.rewards[:100], rows.rewards[100:] = 0.0, 1.0
    world_model = make_world_model(config, spec)._replace(
        update=lambda state, segment, normaliser, key: (segment.rewards[:, 0], {})
    )
    replay = add(replays.init(spec, 300, config.horizon), rows, config.horizon)
    update = jax.jit(make_model_update(world_model, config))
    rewards, _ = update(None, replay, None, jax.random.key(0), jax.random.key(1))
    newer = float(np.mean(rewards > 0))
    assert newer == 1.0 if share else 0.3 < newer < 0.7


def test_a_run_saved_before_first_ends_were_windows_resumes(tmp_path):
    """Its queue of window starts lacks them; a replay of another run is still refused."""
    run = loop.begin(small("inverted_pendulum"), tmp_path / "run")
    add = jax.jit(replays.add, static_argnums=2)
    rows, key, count = noise_rows(INSERT_CHUNK), jax.random.key_data(jax.random.key(0)), np.int32(0)
    rows.valid[60:] = False
    rows.terminals[10:20] = 1.0  # the first ends an episode of eleven steps, nine are episodes of one step
    blank = TrainState(key, count, count, replays.init(run.spec, 1_000, run.config.horizon), {}, {})

    def insert(state, rows):
        return state.replace(replay=add(state.replay, rows, run.config.horizon))

    states = np.zeros((60, run.collecting.collector.simulator_state_size))
    state = insert(blank, run.collecting.record(Chunk(rows, states, 60)))
    run.at.env_steps = 60
    saved = int(state.replay.tail)
    for fewer, fine in ((9, True), (8, False)):
        loop.save(run, state.replace(replay=state.replay.replace(tail=state.replay.tail - fewer)))
        if fine:
            restored = loop.restore(run, blank, insert)
            assert int(restored.replay.tail) == saved and int(restored.replay.head) == 0
        else:
            with pytest.raises(TransitionLogError, match="does not belong to the checkpoint at step 60: its tail is"):
                loop.restore(run, blank, insert)
    run.world_model = run.world_model._replace(streamed=True)  # before, windows: its starts are counted anew
    assert int(loop.restore(run, blank, insert).replay.tail) == saved
    run.checkpoints.close()
    run.close()


def test_a_run_that_was_standardised_otherwise_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "without_rows", lambda state: state)
    monkeypatch.setattr(loop, "why_standardised_otherwise", lambda folder, moments: f"{folder}: {moments}")
    state = SimpleNamespace(replay=SimpleNamespace(moments="Kelvins"))
    checkpoints = SimpleNamespace(restore=lambda target, at_most: (10, target, {}))
    with pytest.raises(ConfigError, match=f"^{tmp_path}: Kelvins; allowed: a new run$"):
        loop.restore(SimpleNamespace(folder=tmp_path, checkpoints=checkpoints), state, None)


@pytest.mark.parametrize(("step", "kept"), [(10, True), (11, False)])
def test_a_best_evaluation_after_the_checkpoint_is_made_anew(step, kept, tmp_path):
    best = tmp_path / "best.npz"
    export_npz(best, {"env_steps": np.int64(step)})
    loop.cut_back(Mock(folder=tmp_path, saved_at=10))
    assert best.exists() == kept


def test_what_learns_for_nothing_is_named():
    config = override(cpu("hopper"), {"value_gradient.starts": "replay"})
    assert loop.config_warnings(cpu("hopper")) == []
    (line,) = loop.config_warnings(config)
    assert "value_gradient.starts is replay: polygrad learns, and nothing is learnt from it" in line
    assert loop.config_warnings(override(config, {"world_model": "ensemble"})) == []
    warmup = {"loop.prefill_env_steps": 500, "model_training.warmup_env_steps": 100}
    (line,) = loop.config_warnings(override(smoke("hopper"), warmup | {"loop.total_env_steps": 600}))
    assert "loop.total_env_steps is 600: the policy learns nothing before step 600" in line
    assert loop.config_warnings(override(smoke("hopper"), warmup | {"loop.total_env_steps": 601})) == []


@pytest.mark.parametrize("agent", ["a2c", "dreamer"])
def test_a_mean_action_that_is_squashed_twice_is_named(agent):
    config = override(smoke("hopper"), {"agent": agent, "env.actions": "squashed", "world_model": "dreamer"})
    (line,) = loop.config_warnings(config)
    assert f"the mean of agent {agent} is already a tanh: its mean action stays within 0.76 of 0" in line
    assert loop.config_warnings(override(config, {"env.actions": "clipped"})) == []


def test_a_prefill_of_the_whole_budget_is_refused(tmp_path):
    config = small("halfcheetah", prefill_env_steps=500, total_env_steps=900)  # an episode is 1,000 steps
    run = loop.begin(config, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.collecting.prefill(None, lambda state, chunk: state, lambda: True)
    with pytest.raises(ConfigError, match="is 900; allowed: more than the prefill .* has not ended at step 900"):
        run.collecting.prefill(None, lambda state, chunk: state)
    run.close()


class Walk(gym.Env):
    """Ends after ``length`` steps; one copy at a time may be open."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    opened = 0

    def __init__(self, length=10**9):
        assert Walk.opened == 0, "no second one"
        self.length, Walk.opened = length, 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.at = 0, self.np_random.uniform()
        return np.array([self.at]), {}

    def step(self, action):
        self.count, self.at = self.count + 1, self.at + float(action[0])
        return np.array([self.at]), self.at, self.count == self.length, False, {}

    def close(self):
        Walk.opened = 0


def walk(length=10**9, **register):
    name = f"PolygradWalk{length}_{register.get('max_episode_steps', 0)}-v0"
    gym.registry.pop(name, None)
    gym.register(name, entry_point=Walk, kwargs={"length": length}, **register)
    return name


def test_a_task_that_nothing_ends_is_refused_long_before_its_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collecting, "UNENDED_STEPS", 700)
    for name, prefill, total, message in (
        (walk(), 50, 100_000, "an episode of random actions has not ended after 701 steps"),
        (walk(), 100, 100_000, "has not ended after 1,001 steps"),  # ten prefills
        (walk(), 51, 300, "has not ended after 300 steps"),
        (walk(800), 50, 100_000, "has not ended after 701 steps"),
        (walk(800), 100, 100_000, None),  # it ends itself
        (walk(max_episode_steps=1_500), 50, 100_000, None),
    ):
        config = small(name, prefill_env_steps=prefill, total_env_steps=total)
        run = loop.begin(config, tmp_path / f"{name}-{prefill}")
        warned = "has no time limit (max_episode_steps): an episode is learnt from once" in capsys.readouterr().err
        assert warned == (run.collecting.collector.env.time_limit is None)
        if message is None:
            run.collecting.prefill(None, lambda state, chunk: state)
        else:
            with pytest.raises(ConfigError, match=f"env.name {name}: .*{message}, .*; allowed: .*max_episode_steps"):
                run.collecting.prefill(None, lambda state, chunk: state)
        run.close()


def test_an_episode_that_a_policy_does_not_end_is_warned_of_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collecting, "UNENDED_STEPS", 41)
    for name, warnings in ((walk(), 1), (walk(30), 0), (walk(max_episode_steps=90), 0)):
        run = loop.begin(small(name), tmp_path / name)
        act = lambda params, memory, raw_obs, draw: (raw_obs, raw_obs, None)  # noqa: E731
        run.collecting.decide, run.collecting.agent = act, SimpleNamespace(remember=lambda *_: None)
        for _ in range(20):  # of four steps
            run.collecting.collect(None)
        assert capsys.readouterr().err.count("has not ended after 41 steps; nothing of it is learnt from") == warnings
        run.close()


def test_training_evaluates_in_its_own_copy_where_there_can_be_no_other(tmp_path, capsys):
    """The evaluation of a task of one copy is that of twenty copies side by side, and collecting goes on unmoved."""
    name = walk(30)
    config = override(small(name, prefill_env_steps=35, eval_episodes=3), {"a2c.hidden_size": 8})
    run = loop.begin(config, tmp_path / "run")
    for k in range(35):
        run.collecting.take_step(run.collecting.new_chunk(1), np.full(1, 0.01 * k))
    before = run.collecting.collector.snapshot()
    agent = jax.jit(run.agent.init)(jax.random.key(0))
    state = SimpleNamespace(agent=agent, world_model={}, replay=SimpleNamespace(moments={}))
    loop.evaluate(run, state, None)
    assert "evaluation runs episodes in turn, in the copy that training collects from" in capsys.readouterr().err
    after = run.collecting.collector.snapshot()
    for part in before:
        np.testing.assert_array_equal(before[part], after[part])
    run.close()
    row = (tmp_path / "run" / "eval.csv").read_text().splitlines()[1]

    class Many(Walk):
        def __init__(self, length):
            self.length = length

    gym.registry[name].entry_point = Many
    params = jax.device_get(run.agent.evaluated(agent, {}))
    seed = evaluation_seed(config.seed, 35)
    wanted = evaluation_row(evaluate_policy(config.env, run.agent, run.collecting.decide, params, 3, seed))
    assert row == f"35,{wanted['return_mean']!r},{wanted['return_std']!r},30.0,,,none"


@pytest.mark.parametrize(
    ("world_model", "field", "component"),
    [
        ("polygrad", "denoiser.learning_rate", "imagined trajectory|loss|world model"),
        ("simulator", "a2c.critic_lr", "loss|actor"),
    ],
)
def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, world_model, field, component):
    config = override(small(), {"world_model": world_model, field: 1e30})
    with pytest.raises(NonFiniteError, match=f"not finite at environment step [0-9]+: .*({component})"):
        train(config, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    arrays = checkpoints.read(checkpoints.steps()[-1]).arrays
    checkpoints.close()
    assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")


@pytest.mark.parametrize("averaged", [False, True])
def test_the_average_of_the_policy_is_what_is_evaluated_and_kept(averaged, tmp_path, monkeypatch):
    config, spec, evaluated, kept = small(), EnvSpec(3, 2), [], []
    config = override(config, {"a2c.actor_ema": 0.9 if averaged else 0.0})
    agent = make_agent(config, spec, make_world_model(config, spec))
    learnt = jax.jit(agent.init)(jax.random.key(0))
    if averaged:
        learnt = learnt.replace(averaged_actor=learnt.averaged_actor | {"log_std": np.full(2, 7.0)})

    def evaluate_policy(env, agent, decide, params, episodes, seed, **known):
        evaluated.append(params)
        return SimpleNamespace(returns=np.ones(2), lengths=np.ones(2), distances=np.full(2, np.nan))

    monkeypatch.setattr(loop, "evaluate_policy", evaluate_policy)
    monkeypatch.setattr(loop, "export_npz", lambda path, tree: kept.append(agent.evaluated(tree["agent"], {})))
    metrics = SimpleNamespace(write_evaluation=lambda *_: None)
    host = SimpleNamespace(decide=None, collector=SimpleNamespace(lent=None))
    run = SimpleNamespace(
        at=Counters(env_steps=5), config=config, agent=agent, collecting=host, metrics=metrics, folder=tmp_path
    )
    state = SimpleNamespace(agent=learnt, world_model={}, replay=SimpleNamespace(moments={}))
    loop.evaluate(run, state, None)
    for seen in (*evaluated, *kept):
        np.testing.assert_array_equal(seen["log_std"], np.full(2, 7.0) if averaged else learnt.actor["log_std"])
    assert len(evaluated) == len(kept) == 1


NAN, INF = float("nan"), float("inf")


def evaluations_of(returns, tmp_path, monkeypatch, at):
    """Evaluate at steps 5, 6, ... with these returns; give the steps whose parameters were kept as the best."""
    config, kept = small(), []
    agent = make_agent(config, EnvSpec(3, 2), make_world_model(config, EnvSpec(3, 2)))
    monkeypatch.setattr(loop, "export_npz", lambda path, tree: kept.append(int(tree["env_steps"])))
    monkeypatch.setattr(loop, "evaluate_policy", lambda *_, **__: None)
    metrics = SimpleNamespace(write_evaluation=lambda *_: None)
    host = SimpleNamespace(decide=None, collector=SimpleNamespace(lent=None))
    run = SimpleNamespace(at=at, config=config, agent=agent, collecting=host, metrics=metrics, folder=tmp_path)
    state = SimpleNamespace(
        agent=SimpleNamespace(actor={}, averaged_actor=None), world_model={}, replay=SimpleNamespace(moments={})
    )
    for step, value in enumerate(returns, start=5):
        monkeypatch.setattr(loop, "evaluation_row", lambda _, value=value: {"return_mean": value})
        at.env_steps = step
        loop.evaluate(run, state, None)
    return kept


@pytest.mark.parametrize("before", [None, NAN, INF, -INF])
@pytest.mark.parametrize(
    ("returns", "best"),
    [
        ([NAN, 1.0, 0.5, 2.0], [6, 8]),
        ([1.0, NAN, 0.5, 2.0], [5, 8]),
        ([INF, -3.0, -4.0], [6]),
        ([-INF, NAN, INF, -3.0], [8]),
        ([NAN, NAN], []),
    ],
)
def test_only_a_finite_evaluation_is_the_best(returns, best, before, tmp_path, monkeypatch):
    """Whatever an older version left in the counters."""
    saved = Counters.from_json(json.loads(json.dumps(dataclasses.asdict(Counters(best_return=before)))))
    assert evaluations_of(returns, tmp_path, monkeypatch, saved) == best
    finite = [x for x in returns if np.isfinite(x)]
    assert not finite or saved.best_return == max(finite)
