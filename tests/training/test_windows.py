"""Which stored transitions are learnt from, and what is said of the others."""

import gymnasium as gym
import jax
import numpy as np
import pytest

from polygrad_jax.config import ConfigError, EnvSpec, override, smoke
from polygrad_jax.data import replay as replays
from polygrad_jax.training import loop
from polygrad_jax.training.collecting import empty_chunk
from polygrad_jax.training.windows import (
    Window,
    limit_warnings,
    require_windows,
    say_uncovered,
    uncovered_share,
    window_of,
)
from polygrad_jax.world_models.model_table import make_world_model

POLE = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"

ROOM = 64
add = jax.jit(replays.add, static_argnums=2)


def replay_of_episodes(lengths, terminated, behind=0, least=10):
    """Episodes one behind the other, and ``behind`` steps of one that has not ended, in a ring of 64.

    An episode must have ``least`` states to be learnt from.
    """
    count, ends = sum(lengths) + behind, np.cumsum(lengths) - 1
    rows = empty_chunk(-(-count // ROOM) * ROOM, EnvSpec(2, 1))
    rows.valid[:count] = True
    (rows.terminals if terminated else rows.truncations)[ends] = 1.0
    replay = replays.init(EnvSpec(2, 1), ROOM, least)
    for k in range(0, len(rows.valid), ROOM):
        replay = add(replay, jax.tree.map(lambda x, k=k: x[k : k + ROOM], rows), least)
    return replay


def replay_without_windows(lengths):
    """The same of episodes that were cut off before any window was full, whatever its length."""
    steps = np.concatenate([np.arange(length) for length in lengths])
    stored = np.pad(steps, (0, ROOM - len(steps))).astype(np.int32)
    return replays.init(EnvSpec(2, 1), ROOM, 2).replace(steps=stored, total=np.int32(len(steps)))


def window_in(model):
    config = override(smoke("hopper"), {"world_model": model} | ({"agent": "dreamer"} if model == "dreamer" else {}))
    return window_of(config, make_world_model(config, EnvSpec(2, 1)))


def test_streams_need_no_long_episode():
    window = window_in("dreamer")
    replay = replay_of_episodes([3, 2, 3], terminated=False, least=window.of_episode)
    require_windows(replay, window)
    assert uncovered_share(replay, window) == {"replay/uncovered_share": 0.0}
    assert limit_warnings("Task-v0", 2, window) == []
    with pytest.raises(ConfigError, match="^6 stored transitions are less than a training window of 8 states .dreamer"):
        require_windows(replay_of_episodes([3, 3], terminated=False, least=window.of_episode), window)


MODELS = {
    "polygrad": ("horizon of at most 6", "10 states (horizon 10)"),
    "transformer": ("transformer.context_length of at most 5", "16 states (transformer.context_length 15)"),
}


@pytest.mark.parametrize("model", MODELS)
def test_episodes_shorter_than_a_window_are_refused_with_what_helps(model):
    """Whatever says how long a window is. At the start a time limit is only said: episodes may end before it."""
    window, (remedy, length) = window_in(model), MODELS[model]
    with pytest.raises(ConfigError) as refused:
        require_windows(replay_without_windows([6, 6, 4]), window)
    assert str(refused.value) == (
        f"none of the 16 stored transitions is in a training window of {length}: the longest episode was cut off after "
        f"6 steps; allowed: {remedy}, or a longer time limit"
    )
    assert limit_warnings("Task-v0", window.states, window) == []
    (said,) = limit_warnings("Task-v0", 6, window)
    assert f"is 6 steps: an episode that it cuts off is shorter than a training window of {length} and " in said
    assert remedy in said
    (said,) = limit_warnings("Task-v0", None, window)
    assert "Task-v0 has no time limit (max_episode_steps)" in said


@pytest.mark.parametrize("model", [*MODELS, "dreamer", "autoregressive", "distilled", "ensemble"])
def test_steps_that_are_cut_off_one_by_one_are_refused(model):
    """No window makes anything of single steps without an end: the advice must not be a shorter one."""
    with pytest.raises(ConfigError, match="cut off after 1 step; allowed: a task whose episodes go on for 2 steps"):
        require_windows(replay_without_windows([1] * 9), window_in(model))


@pytest.mark.parametrize("lengths", [[1] * 9, [6, 6, 4]])
def test_what_ends_is_learnt_from_however_short_and_what_is_cut_off_is_not(lengths):
    window = Window(10)
    ended, cut_off = (replay_of_episodes(lengths, terminated) for terminated in (True, False))
    require_windows(ended, window)
    assert uncovered_share(ended, window) == {"replay/uncovered_share": 0.0}
    with pytest.raises(ConfigError, match=f"none of the {sum(lengths)} stored .* cut off after {max(lengths)} step"):
        require_windows(cut_off, window)
    assert uncovered_share(cut_off, window) == {"replay/uncovered_share": 1.0}


@pytest.mark.parametrize("terminated", [False, True])
def test_an_episode_that_overwrites_all_others_asks_for_room(terminated):
    replay = replay_of_episodes([12, 13], terminated, behind=ROOM - 1)
    for window in (Window(10), Window(40, streamed=True)):
        with pytest.raises(ConfigError, match="overwritten the others; allowed: loop.replay_capacity of more than 64"):
            require_windows(replay, window)


def test_a_stream_leaves_nothing_out():
    replay = replay_of_episodes([1] * 9, terminated=False, behind=20, least=2)
    assert uncovered_share(replay, Window(10)) == {"replay/uncovered_share": 1.0}
    assert uncovered_share(replay, Window(10, streamed=True)) == {"replay/uncovered_share": 0.0}


def test_a_world_model_of_ones_own_with_long_windows_is_named():
    window = window_of(smoke("hopper"), make_world_model(smoke("hopper"), EnvSpec(2, 1))._replace(window=8))
    with pytest.raises(ConfigError, match="window of 8 states: .* allowed: a world model with windows of at most 6"):
        require_windows(replay_without_windows([6]), window)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"world_model": "transformer", "transformer.context_length": 10_000}, "10001, .*.context_length 10000"),
        ({"world_model": "dreamer", "agent": "dreamer", "dreamer.window": 30_000}, "30000, .* .dreamer.window 30000"),
    ],
)
def test_a_window_that_the_replay_cannot_hold_is_refused_before_anything_is_written(fields, words, tmp_path):
    config = override(smoke("hopper"), fields)
    with pytest.raises(ConfigError, match=f"loop.replay_capacity is 10000; allowed: at least {words}"):
        loop.begin(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("limit", "lines"), [(8, 2), (100, 0)])
def test_a_short_time_limit_is_said_at_the_start_and_counted(limit, lines, tmp_path, capsys):
    """The pendulum falls after 5 to 20 random steps: a limit of 8 leaves the episodes that fall before it."""
    gym.register("PolygradShort-v0", POLE, max_episode_steps=limit)
    config = override(smoke("PolygradShort-v0"), {"horizon": 10, "loop.prefill_env_steps": 200})
    run = loop.begin(config, tmp_path / "run")
    replay = run.collecting.prefill(replays.init(run.spec, 1_000, 10), lambda replay, rows: add(replay, rows, 10))
    say_uncovered(replay, run.window)
    said = capsys.readouterr().err
    run.close()
    del gym.registry["PolygradShort-v0"]
    assert said.count("warning: ") == lines, said
    outside = uncovered_share(replay, run.window)["replay/uncovered_share"]
    t = run.collecting.transitions
    t.flush()
    stored, begin, lost = t.load(t.flushed_rows), 0, 0
    for end in np.flatnonzero(stored.terminals | stored.truncations) + 1:
        lost += 0 if stored.terminals[end - 1] or end - begin >= 10 else end - begin
        begin = end
    assert outside == pytest.approx(lost / begin)
    if lines:
        assert f"{lost:,} of {begin:,} stored transitions are in no training window" in said and 0 < lost < begin
