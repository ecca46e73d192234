"""Several devices of one host: trajectories and batches are shared out among them, and what is learnt is on all.

The mesh has an axis ``seed`` for seeds that learn together, which need nothing of each other, and an axis ``data`` for
the batches of each. The numbers are those of one device but for the order in which sums are taken.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polygrad_jax.config import ConfigError

SEED, DATA = "seed", "data"

Tree = TypeVar("Tree")


def make_mesh(devices: int, seeds: int) -> Mesh | None:
    """Make the mesh of ``devices``: as many groups as divide both them and the seeds; None for one device.

    With several hosts (``hosts.py``) it is that of all devices of all of them.

    Raises:
      ConfigError: there are not so many, or several hosts are to train several seeds.
    """
    hosts = jax.process_count()
    if hosts > 1:
        if devices > 1 or seeds > 1:
            what = f"devices is {devices}" if devices > 1 else f"seeds are {seeds}"
            raise ConfigError(f"{what} on {hosts} hosts; allowed: 1; all devices share the batches of one seed")
        return Mesh(np.array(jax.devices()).reshape(1, -1), (SEED, DATA))
    there = jax.local_devices()
    if not 1 <= devices <= len(there):
        raise ConfigError(f"devices is {devices}; allowed: from 1 to {len(there)}, as many as JAX finds here")
    if devices == 1:
        return None
    groups = math.gcd(devices, seeds)
    return Mesh(np.array(there[:devices]).reshape(groups, -1), (SEED, DATA))


def sharding_of_state(mesh: Mesh, seeds: int) -> NamedSharding:
    """Return where arrays of the train state lie: each seed's on the devices of its group."""
    return NamedSharding(mesh, PartitionSpec(SEED) if seeds > 1 else PartitionSpec())


def place_state(tree: Tree, mesh: Mesh, seeds: int) -> Tree:
    """Put arrays of the train state where they lie; of several hosts each puts its own copy on its own devices."""
    sharding = sharding_of_state(mesh, seeds)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would compare the copies, which takes every host at once, leaf by leaf.
    on_the_host = jax.device_get(tree)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at]), on_the_host)


def shared_out(tree: Tree, mesh: Mesh | None) -> Tree:
    """Share arrays ``[B, ...]`` out among the devices by their first axis; those that do not divide stay whole."""
    if mesh is None:
        return tree
    parts, sharding = mesh.shape[DATA], NamedSharding(mesh, PartitionSpec(DATA))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding) if x.shape[0] % parts == 0 else x, tree)


def on_all(tree: Tree, mesh: Mesh | None) -> Tree:
    """Keep arrays whole on every device."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)
