#!/usr/bin/env bash
# minari 0.5.4 with pyarrow 26.0.1 and h5py 3.16.0.
#
# Expected: the storage format of a dataset ("hdf5", "arrow", "parquet") does not change what is read back.
#
# Behaviour: in arrow and parquet an episode of more than 32,767 steps comes back cut, without its end, and its rest
# comes back as the next episode; so the true next episodes are never reached. Nothing is raised. Reading takes each
# record batch for an episode, and pyarrow hands out batches of at most 32,768 rows. The counts in the metadata are
# right, and so is hdf5.
#
# Who is hurt: tasks without resets (locomotion, robots, one long life), whose episodes are that long. A learner sees
# an episode that never ends, then one that starts in the middle, and never the remaining data.
#
# Seen: hdf5:    says 2 episodes, 40010 steps; reads 40000 and 10 steps
#       arrow:   says 2 episodes, 40010 steps; reads 32767 and 7232 steps
#       parquet: says 2 episodes, 40010 steps; reads 32767 and 7232 steps
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "minari[arrow,hdf5]==0.5.4" "pyarrow==26.0.1" "h5py==3.16.0" "numpy==2.4.6"
MINARI_DATASETS_PATH="$folder/datasets" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer


def episode(length):
    """An episode of the given length that ends by its time limit and counts its steps in the observation."""
    last = np.arange(length) == length - 1
    return EpisodeBuffer(
        observations=np.arange(length + 1, dtype=np.float32)[:, None],
        actions=np.zeros((length, 1), np.float32),
        rewards=np.ones(length),
        terminations=np.zeros(length, bool),
        truncations=last,
    )


space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
lengths = {}
for data_format in ("hdf5", "arrow", "parquet"):
    dataset = minari.create_dataset_from_buffers(
        f"counting/{data_format}-v0",
        buffer=[episode(40_000), episode(10)],
        observation_space=space,
        action_space=space,
        data_format=data_format,
    )
    lengths[data_format] = [len(read.rewards) for read in dataset.iterate_episodes()]
    says = f"says {dataset.total_episodes} episodes, {dataset.total_steps} steps"
    print(f"{data_format}: {says}; reads {lengths[data_format]} steps")
assert lengths["hdf5"] == [40_000, 10], "hdf5 no longer reads what was written"
assert lengths["arrow"] == lengths["parquet"] == [32_767, 7_232], "arrow and parquet read otherwise now"
PYTHON
