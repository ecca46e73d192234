"""Several seeds in one program: the device's arrays get a leading axis, an entry per seed (``S``).

The host keeps each seed's environment, run folder and logs apart, as if it ran alone; a run alone has no such axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polygrad_jax.config import ConfigError
from polygrad_jax.training.devices import SEED
from polygrad_jax.training.step import Steps

Tree = TypeVar("Tree")


def over_seeds(steps: Steps, seeds: int, mesh: Mesh | None = None) -> Steps:
    """Return the same functions for ``[S, ...]`` in place of every array, but for ``init``; alone as they are.

    Args:
      mesh: the devices among which the seeds are shared out; None for one.
    """
    if seeds == 1:
        return steps
    axis = None if mesh is None else SEED
    functions = steps._asdict()
    del functions["init"]
    return steps._replace(**{name: jax.vmap(f, spmd_axis_name=axis) for name, f in functions.items()})


def stacked(trees: Sequence[Tree]) -> Tree:
    """Return one tree of ``[S, ...]`` of the trees of all seeds; that of a run alone as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves), *trees)


def of_seed(tree: Tree, index: int, seeds: int) -> Tree:
    """Return one seed's entry of a tree of ``[S, ...]``: a copy on the device, a view on the host."""
    return tree if seeds == 1 else jax.tree.map(lambda leaf: leaf[index], tree)


def of_each_seed(tree: Tree, seeds: int) -> list[Tree]:
    """Return every seed's entry of a small tree, fetched to the host at once."""
    if seeds == 1:
        return [tree]
    on_the_host = jax.device_get(tree)
    return [of_seed(on_the_host, index, seeds) for index in range(seeds)]


# --- going on together -----------------------------------------------------------------------------------------------

Saved = Mapping[int, int]
"""Of one seed: the environment steps of its checkpoints, by those without the random prefill, of which all seeds that
learn together have the same number."""


def resumed_together(folders: Sequence[Path], saved: Sequence[Saved], over: Sequence[bool]) -> list[int | None]:
    """Return the environment steps at which each seed resumes: all where they were at one moment, the latest saved.

    A save of several seeds that was killed leaves some of them a checkpoint ahead. A seed that is ``over`` resumes at
    its end, and one alone at its newest checkpoint. None: there is none yet.

    Raises:
      ConfigError: the seeds have no such moment.
    """
    newest = [max(steps.values(), default=None) for steps in saved]
    learning = [steps for steps, ended in zip(saved, over, strict=True) if not ended]
    if len(learning) < 2:
        return newest
    begun = [set(steps) or {0} for steps in learning]
    if not (common := set.intersection(*begun)):
        where = ", ".join(f"{path.name} at {step or 0:,}" for path, step in zip(folders, newest, strict=True))
        raise ConfigError(
            f"the seeds in {folders[0].parent} are not at one moment (environment steps: {where}); allowed: go on with "
            f"each alone, as in --run {folders[0]}, or a new folder"
        )
    latest = max(common)
    return [
        step if ended else steps.get(latest) for steps, step, ended in zip(saved, newest, over, strict=True)
    ]
