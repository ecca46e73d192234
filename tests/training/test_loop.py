"""The whole loop in this process: what it learns on an easy task, how it stops when learning diverges."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError, EnvSpec
from polygrad_jax.data import replay as replays
from polygrad_jax.training import loop
from polygrad_jax.runs.checkpoints import Checkpoints, load_npz
from polygrad_jax.training.step import make_iterations
from polygrad_jax.training.learners import acting_params, make_learner, shown_actor
from polygrad_jax.training.loop import NonFiniteError, crossed, train
from polygrad_jax.training.programs import compile_learning
from polygrad_jax.world_models.model_table import make_world_model


def small(env="hopper", **loop_fields):
    base = configs.smoke(env)
    fields = {"total_env_steps": 1_600, "eval_every_env_steps": 400, "checkpoint_every_env_steps": 200} | loop_fields
    return configs.validate(dataclasses.replace(base, loop=dataclasses.replace(base.loop, **fields)))


def test_multiples_are_crossed_once():
    assert [s for s in range(6, 31, 4) if crossed(s - 4, s, 10)] == [10, 22, 30]


def test_a_run_writes_what_it_did_and_never_traces_twice(tmp_path, monkeypatch):
    traced = []
    make = loop.make_iterations

    def counted(name, function):
        def counting(*given):
            traced.append(name)
            return function(*given)

        return counting

    def counting(*given):
        made = make(*given)
        parts = {name: counted(name, getattr(made.parts, name)) for name in ("improve_policy", "improve_model")}
        return made._replace(learn=counted("learn", made.learn), parts=made.parts._replace(**parts))

    monkeypatch.setattr(loop, "make_iterations", counting)
    config = small()
    result = train(config, tmp_path / "run")
    assert traced == ["improve_policy", "improve_model"]
    assert result.stopped_by is None
    assert config.loop.total_env_steps <= result.env_steps < config.loop.total_env_steps + 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    assert last["env_steps"] == result.env_steps
    prefill = result.env_steps - last["env_steps/without_prefill"]
    assert prefill >= config.loop.prefill_env_steps
    # one policy update per iteration of 4 steps after the warm-up, 4 denoiser updates per iteration from the start
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    step, host = checkpoints.steps()[-1], None
    arrays, host = checkpoints._read(step)
    checkpoints.close()
    iterations = (result.env_steps - prefill) // 4
    warmup = -(-config.loop.denoiser_warmup_env_steps // 4)
    assert arrays["train_state/policy_updates"] == iterations - warmup
    assert arrays["train_state/model_updates"] == 4 * iterations
    assert arrays["train_state/replay/total"] == result.env_steps
    with open(tmp_path / "run" / "eval.csv", newline="") as file:
        evaluations = list(csv.DictReader(file))
    assert float(evaluations[-1]["return_mean"]) == pytest.approx(result.last_return)
    best = load_npz(tmp_path / "run" / "best.npz")
    assert max(float(e["return_mean"]) for e in evaluations) == pytest.approx(host["progress"]["best_return"])
    assert best["actor"]["log_std"].shape == (3,)
    # the error of imagined trajectories is there for every horizon, and it grows
    errors = [last[f"error/observation_mse_{h:03d}"] for h in range(1, config.horizon)]
    assert errors[-1] > errors[0] > 0


def test_side_by_side_the_numbers_are_those_of_one_program():
    config = small("inverted_pendulum")
    spec = EnvSpec(observation_size=4, action_size=1)
    noise = np.random.default_rng(0)
    rows = loop.empty_chunk(200, spec)
    rows.observations[:], rows.actions[:] = noise.standard_normal((200, 4)), noise.uniform(-3, 3, (200, 1))
    rows.rewards[:], rows.valid[:] = noise.standard_normal(200), True
    rows.terminals[49::50] = 1.0
    chunk = jax.tree.map(lambda x: x[:4], rows)

    def learnt(side_by_side):
        iterations = make_iterations(config, spec)
        state = jax.jit(iterations.insert)(jax.jit(iterations.init, static_argnums=0)(0), rows)
        asked = dataclasses.replace(config, loop=dataclasses.replace(config.loop, side_by_side=side_by_side))
        learning = compile_learning(iterations, asked, state, chunk)
        for _ in range(2):
            state, output = learning.learn(state, chunk)
        return len(learning.programs), state, output

    (one, state, output), (several, other_state, other_output) = learnt(False), learnt(True)
    assert one == 1 and several > 1
    assert int(state.policy_updates) == int(other_state.policy_updates) == 2
    assert int(state.model_updates) == int(other_state.model_updates) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), state, other_state)
    assert set(output.metrics) == set(other_output.metrics)
    assert np.array_equal(output.finite, other_output.finite) and output.finite.all()


def test_a_replay_without_a_window_is_refused():
    config, spec = small(), EnvSpec(2, 1)
    run = SimpleNamespace(config=config, at=loop.Progressing(env_steps=12))
    state = SimpleNamespace(replay=replays.init(spec, 300, config.horizon))
    chunk = loop.empty_chunk(13, spec)
    chunk.valid[:] = True
    chunk.truncations[5::6] = 1.0  # episodes of 6 steps, cut off: no window of 10 states in them
    state.replay = replays.add(state.replay, chunk, config.horizon)
    with pytest.raises(ConfigError, match="horizon is 10, and none of the 12 stored steps"):
        loop.require_windows(run, state)
    chunk.truncations[:] = 0.0
    chunk.terminals[5::6] = 1.0  # ended: windows are padded
    state.replay = replays.add(state.replay, chunk, config.horizon)
    loop.require_windows(run, state)


def test_a_prefill_of_the_whole_budget_is_refused(tmp_path):
    config = small("halfcheetah", prefill_env_steps=500, total_env_steps=900)  # an episode is 1,000 steps
    run = loop.open_run(config, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.prefill(run, None, lambda state, chunk: state, SimpleNamespace(requested=True))
    with pytest.raises(ConfigError, match="is 900; allowed: more than the prefill .* has not ended at step 900"):
        loop.prefill(run, None, lambda state, chunk: state)
    run.lock.close()


@pytest.mark.parametrize(
    ("group", "field", "value", "component"),
    [
        ("denoiser", "learning_rate", 1e30, "imagined trajectory|loss|world model"),
        ("a2c", "critic_lr", 1e30, "loss|actor"),
    ],
)
def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, group, field, value, component):
    config = small()
    part = dataclasses.replace(getattr(config, group), **{field: value})
    config = dataclasses.replace(config, **{group: part})
    with pytest.raises(NonFiniteError, match=f"not finite at environment step [0-9]+: .*({component})"):
        train(config, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    arrays, _ = checkpoints._read(checkpoints.steps()[-1])
    checkpoints.close()
    assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")


@pytest.mark.parametrize("averaged", [False, True])
def test_the_average_of_the_policy_is_what_is_evaluated_and_kept(averaged, tmp_path, monkeypatch):
    config, spec, evaluated, kept = small(), EnvSpec(3, 2), [], []
    config = dataclasses.replace(config, a2c=dataclasses.replace(config.a2c, actor_ema=0.9 if averaged else 0.0))
    learner = make_learner(config, spec, make_world_model(config, spec))
    learnt = jax.jit(learner.init)(jax.random.key(0))
    if averaged:
        learnt = learnt.replace(averaged_actor=learnt.averaged_actor | {"log_std": np.full(2, 7.0)})

    def evaluate_policy(env, behaviour, params, episodes, seed):
        evaluated.append(params)
        return SimpleNamespace(returns=np.ones(2), lengths=np.ones(2), distances=np.full(2, np.nan))

    monkeypatch.setattr(loop.evaluation, "evaluate_policy", evaluate_policy)
    monkeypatch.setattr(loop, "save_best", lambda path, tree: kept.append(tree["actor"]))
    at = SimpleNamespace(env_steps=5, last_return=None, best_return=None, clock=SimpleNamespace(evaluating=0.0))
    metrics = SimpleNamespace(write_evaluation=lambda *_: None)
    run = SimpleNamespace(at=at, config=config, behaviour=None, metrics=metrics, folder=tmp_path)
    state = SimpleNamespace(learner=learnt, world_model={}, replay=SimpleNamespace(moments={}))
    loop.evaluate(run, state, lambda s: acting_params(config, shown_actor(s.learner), s.world_model), None)
    for seen in (*evaluated, *kept):
        np.testing.assert_array_equal(seen["log_std"], np.full(2, 7.0) if averaged else learnt.actor["log_std"])
    assert len(evaluated) == len(kept) == 1
