#!/usr/bin/env bash
# minari 0.5.4 with gymnasium 1.4.0.
#
# Expected: combine_datasets gives the episodes of the datasets it is given.
#
# Behaviour: it copies the whole storage behind each. A part made by split_dataset or filter_episodes (a MinariDataset
# with its own length and its own iteration) brings all the episodes with it that it had left out, and two parts of
# one dataset bring each episode twice.
#
# Who is hurt: whoever splits off a held-out set, or filters out bad episodes, and then combines the rest with new
# data: the held-out episodes are back in the training data and the test error is too good. Nothing is raised.
#
# Seen: split into 3 and 1 episodes; combined from the 3: 4, held-out episodes among them: 1; from the 3 and the 1: 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "minari[hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6"
MINARI_DATASETS_PATH="$folder/datasets" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer


def episode(number):
    """An episode of two steps that holds its number in every observation."""
    return EpisodeBuffer(
        observations=np.full((3, 1), number, np.float32),
        actions=np.zeros((2, 1), np.float32),
        rewards=np.zeros(2),
        terminations=np.zeros(2, bool),
        truncations=np.array([False, True]),
    )


def numbers(dataset):
    """The numbers of the episodes of a dataset, in order."""
    return [int(read.observations[0, 0]) for read in dataset.iterate_episodes()]


space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
whole = minari.create_dataset_from_buffers(
    "numbers/whole-v0",
    buffer=[episode(number) for number in range(4)],
    env=gymnasium.make("Pendulum-v1"),
    observation_space=space,
    action_space=space,
)
training, held_out = minari.split_dataset(whole, [3, 1], seed=0)
combined = minari.combine_datasets([training], "numbers/training-v0")
both = minari.combine_datasets([training, held_out], "numbers/both-v0")
leaked = set(numbers(held_out)) & set(numbers(combined))
print(f"split into {len(training)} and {len(held_out)} episodes; combined from the first part alone: {len(combined)},")
print(f"held-out episodes among them: {len(leaked)}; combined from both parts: {len(both)}")
assert len(combined) == 4 and len(leaked) == 1 and len(both) == 8, "combine_datasets heeds the parts now"
PYTHON
