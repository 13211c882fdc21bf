"""One program on any number of devices and hosts: the mesh, where arrays lie on it, and what crosses it.

Batches are divided among the devices of one axis, "data"; parameters are on every device. The functions that cross the
axis take its name, or None where nothing is divided: the same losses serve one device and many, under `shard_map`,
`pmap` or neither.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from llmdpd_jax.errors import FailedElsewhere, ProcessLost, UserError, out_of_memory, why_not_writable
from llmdpd_jax.types import Array

DATA = "data"
FORMS = ("shard_map", "pmap", "fsdp")  # one device's share on all, in two ways; arrays divided among all, as one
# How XLA's messages begin where a process has no answer from another: "UNKNOWN: Gloo AllGather failed: ...".
DISCONNECTED = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
SMALLEST_DIVIDED = 2**12  # numbers of an array below which sending it about costs more than a copy


# --- across devices, inside a compiled step --------------------------------------------------------------------------


def mean_across(axis: str | None, tree: Any) -> Any:
    """Mean of each device's float32 arrays over the axis, in one all-reduce however many arrays there are."""
    if axis is None:
        return tree
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, axis))


def gather_across(axis: str | None, x: Array) -> Array:
    """All devices' rows [G / devices, ...] as one array [G, ...], on each device."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def share_across(axis: str | None, groups: int) -> Array:
    """Which of G groups are this device's: int [G / devices]."""
    if axis is None:
        return jnp.arange(groups)
    mine = groups // jax.lax.axis_size(axis)
    return jax.lax.axis_index(axis) * mine + jnp.arange(mine)


# --- places of arrays ------------------------------------------------------------------------------------------------


def data_mesh(devices: int = 0) -> Mesh:
    """The mesh of the first `devices` devices of all hosts; 0 takes all.

    Raises:
      UserError: there are not as many.
    """
    if not 0 <= devices <= jax.device_count():
        raise UserError(f"--devices: {devices} of {jax.device_count()} devices; choose 1 to all of them, or 0 for all")
    return Mesh(np.array(jax.devices()[: devices or None]), (DATA,))


def copied(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh, tree: Any) -> Any:
    """How arrays lie where every device holds a part of each (FSDP): a tree of shardings.

    The longest axis that the devices divide evenly is divided; arrays that are small, or have none, are copied.
    """

    def lie(x) -> NamedSharding:
        even = [i for i, length in enumerate(x.shape) if length % mesh.size == 0]
        if x.size < SMALLEST_DIVIDED or not even:
            return copied(mesh)
        longest = max(even, key=lambda i: x.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))

    return jax.tree.map(lie, tree)


def assemble(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Arrays of which every host has its own part, as one array of all hosts."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place(tree: Any, sharding: Any) -> Any:
    """Arrays that every host holds alike, where the sharding wants them; each host hands over only what it keeps.

    Args:
      sharding: one for all arrays, or a tree of the same structure with one for each.
    """

    def put(x, sharding):
        if getattr(x, "sharding", None) == sharding:
            return x
        if jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda x: put(x, sharding), tree)
    return jax.tree.map(put, tree, sharding)


def whole(x: Array) -> np.ndarray:
    """An array as one, in the memory of every host; all have to ask at the same place."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


# --- among hosts -----------------------------------------------------------------------------------------------------


def join_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several that work as one (`jax.distributed`). To be called before anything is computed.

    Args:
      coordinator: "host:port" of the first process, which the others reach it by; None finds processes by themselves on
        a TPU pod, in SLURM and under MPI.
      processes, process: how many there are, and which of them this is; needed with a coordinator.

    Raises:
      UserError: a coordinator alone, no other processes found, or they do not answer.
    """
    if (coordinator is None) != (processes is None) or (processes is None) != (process is None):
        raise UserError("--coordinator, --num-processes, --process-id: give all three, or none of them")
    if processes is not None and not 0 <= process < processes:
        raise UserError(f"--process-id: {process} is not one of 0 to {processes - 1} (--num-processes={processes})")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        found = "" if coordinator else "; name them with --coordinator, --num-processes and --process-id"
        raise UserError(f"no connection to the other processes{found}: {str(error).splitlines()[0]}") from error


def cpus() -> int:
    """How many CPUs this process may use: fewer than the machine has, in many a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_a_cluster() -> bool:
    """Whether this process was started as one of several, by SLURM or on a TPU pod."""
    several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def is_leader() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


@contextlib.contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Where the block fails in one process, it ends in all, which otherwise would wait for each other in vain.

    The block may hold `leader_first`, but nothing else that all processes have to come to.

    Raises:
      FailedElsewhere: it failed in another process.
    """
    try:
        yield
    except FailedElsewhere:
        raise
    except BaseException:
        any_process(True)
        raise
    _go_on(what)


@contextlib.contextmanager
def leader_first(what: str) -> Iterator[None]:
    """The leader goes through the block alone, then all others do and find what it left on disk.

    To be used within `failing_together`.
    """
    if not is_leader():
        _go_on(what)
    yield
    if is_leader():
        _go_on(what)


def _go_on(what: str) -> None:
    """Returns when every process has come here, or to another such place; raises FailedElsewhere if one failed."""
    if any_process(False):
        raise FailedElsewhere(f"another process of this job failed ({what}); its own message says why")


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all have to ask at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextlib.contextmanager
def all_alive(advice: str) -> Iterator[None]:
    """Raises ProcessLost, with the advice, where the block fails because another process does not answer any more.

    Of a process whose connection stays open although it does nothing, JAX itself says so after its heartbeat timeout,
    and aborts.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # XLA's errors come as either
        if jax.process_count() == 1 or not DISCONNECTED.match(str(error)):
            raise
        if out_of_memory(error) or why_not_writable(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise ProcessLost(f"another process of this job is gone ({reason}). {advice}") from error
