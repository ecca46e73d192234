"""Several hosts: the first leads the run, and the others lend it their devices.

All hosts run the same programs at the same time (``jax.distributed``); trajectories and batches are shared out among
all devices of all of them, as among those of one host (``devices.py``). The first host alone steps the environment,
evaluates and keeps the run folder, which take a few hundredths of an iteration. What it collects it sends to the
others: some transitions per iteration. So no replay needs to be kept equal by luck, and a host needs neither the task
nor the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.types import Transitions

Tree = TypeVar("Tree")

END, BEGIN, STATE, WARM_UP, LEARN = range(5)
"""What the first host tells the others."""
WAIT_SECONDS, RETRY_SECONDS = 300.0, 0.5
"""How long a host waits for the first one's address to answer (as long as JAX then waits), and between two tries."""


def connect(hosts: int, host: int, coordinator: str) -> None:
    """Wait for the other hosts; JAX must not have started yet.

    Args:
      host: which this is, from 0.
      coordinator: ADDRESS:PORT of the first host, as the others reach it.

    Raises:
      ConfigError: the port cannot be opened, or nothing answers at the address.
    """
    # JAX aborts the whole program, with the stack of its C++, where either is so: both are tried before.
    with _listening(coordinator) if host == 0 else contextlib.nullcontext():
        _wait_for_answer(coordinator)
    try:
        jax.distributed.initialize(coordinator_address=coordinator, num_processes=hosts, process_id=host)
    except RuntimeError as error:
        raise ConfigError(f"--coordinator is {coordinator}: {error}; allowed: ADDRESS:PORT of host 0") from error


@contextlib.contextmanager
def _listening(coordinator: str) -> Iterator[None]:
    """Have the coordinator's port answer on this machine.

    Raises:
      ConfigError: it cannot be opened.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", _place(coordinator)[1]), family=family, dualstack_ipv6=both)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # without the address, which the line has
        raise ConfigError(
            f"--coordinator is {coordinator}, whose port cannot be opened here ({why}); "
            "allowed: ADDRESS:PORT with a free port of host 0"
        ) from error
    with server:
        yield


def _wait_for_answer(coordinator: str) -> None:
    """Wait until something answers at an address: the first host may be the last to start, and unknown by name before.

    Raises:
      ConfigError: nothing did for :data:`WAIT_SECONDS`.
    """
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return socket.create_connection(_place(coordinator), timeout=RETRY_SECONDS).close()
        except OSError as error:
            if time.monotonic() < until:
                time.sleep(RETRY_SECONDS)
                continue
            raise ConfigError(
                f"--coordinator is {coordinator}, where nothing answers ({error.strerror or error}); "
                "allowed: ADDRESS:PORT of host 0, as every host reaches it"
            ) from error


def _place(coordinator: str) -> tuple[str, int]:
    """Return what ADDRESS:PORT names; an IPv6 address is in brackets."""
    address, _, port = coordinator.rpartition(":")
    return address.strip("[]"), int(port)


def several() -> bool:
    """Whether there are other hosts."""
    return jax.process_count() > 1


def lends() -> bool:
    """Whether this host leads no run, but lends its devices to the first one's."""
    return jax.process_index() > 0


def here(tree: Tree) -> Tree:
    """Return arrays that are whole on every device as this host's own, which it computes with alone."""
    if not several():
        return tree
    return jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and not x.is_fully_addressable else x, tree
    )


# --- messages --------------------------------------------------------------------------------------------------------


def packed(tree: Any) -> np.ndarray:
    """Return the bits of all arrays of a tree, ``[n] uint32``."""
    parts = [np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(tree))]
    together = b"".join(parts)
    return np.frombuffer(together + bytes(-len(together) % 4), np.uint32)


def unpacked(bits: np.ndarray, like: Tree) -> Tree:
    """Invert :func:`packed` for a tree of these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [x.dtype.itemsize * int(np.prod(x.shape)) for x in leaves]
    ends = np.cumsum(sizes)
    whole = bits.tobytes()
    found = [
        np.frombuffer(whole[end - size : end], x.dtype).reshape(x.shape)
        for x, end, size in zip(leaves, ends, sizes, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def send(kind: int, tree: Any = ()) -> None:
    """Tell the other hosts; all of them must :func:`receive`."""
    if not several():
        return
    bits = packed(tree)
    multihost_utils.broadcast_one_to_all(np.array([kind, bits.size], np.int32))
    if bits.size:
        multihost_utils.broadcast_one_to_all(bits)


def receive() -> tuple[int, np.ndarray]:
    """Wait for what the first host tells: its kind and its bits."""
    kind, size = (int(x) for x in multihost_utils.broadcast_one_to_all(np.zeros(2, np.int32)))
    nothing = np.zeros(size, np.uint32)
    return kind, multihost_utils.broadcast_one_to_all(nothing) if size else nothing


# --- the first host --------------------------------------------------------------------------------------------------


def let_go() -> None:
    """End the other hosts' part."""
    send(END)


def share_run(config: Config, spec: EnvSpec) -> None:
    """Have the other hosts compile the steps of a run."""
    about = json.dumps({"config": configs.to_dict(config), "spec": dataclasses.astuple(spec)}).encode()
    send(BEGIN, np.frombuffer(about + b" " * (-len(about) % 4), np.uint8))


def share_state(state: Any) -> None:
    """Give the other hosts the state from which learning begins."""
    send(STATE, state)


def share_step(warming_up: bool, chunk: Transitions) -> None:
    """Have the other hosts take the step that this one is about to take."""
    send(WARM_UP if warming_up else LEARN, chunk)


# --- the others ------------------------------------------------------------------------------------------------------


def told(bits: np.ndarray) -> tuple[Config, EnvSpec]:
    """Return the configuration and the sizes that :func:`share_run` told of."""
    about = json.loads(bits.tobytes().decode())
    return configs.validate(configs.from_dict(about["config"])), EnvSpec(*about["spec"])


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Leave Ctrl-C and SIGTERM, which a cluster sends to all hosts, to the first: it saves and lets the others go."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
