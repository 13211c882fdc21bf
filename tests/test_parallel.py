"""Where arrays lie on several devices, and which errors mean that a process is gone. Devices: tests/training."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from llmdpd_jax import parallel
from llmdpd_jax.errors import ProcessLost, UserError

LOST = "UNKNOWN: Gloo AllGather failed: Connection reset by peer"


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 128), PartitionSpec(None, "data")),  # the longest axis
        ((4096, 2), PartitionSpec("data")),
        ((36, 1000, 9), PartitionSpec(None, "data")),
        ((900, 16), PartitionSpec(None, "data")),  # 900 is longer, and no multiple of 8
        ((99, 99), PartitionSpec()),  # no axis is one
        ((8, 8), PartitionSpec()),  # small
        ((), PartitionSpec()),
    ],
)
def test_large_arrays_are_divided_along_their_longest_even_axis(shape, spec):
    mesh = AbstractMesh((8,), ("data",))
    lies = parallel.divided(mesh, {"x": jax.ShapeDtypeStruct(shape, np.float32)})
    assert lies["x"].spec == spec


def test_a_mesh_of_devices_that_are_not_there():
    for devices in (-1, jax.device_count() + 1):
        with pytest.raises(UserError, match=f"--devices: {devices} of {jax.device_count()} devices; choose 1 to all"):
            parallel.data_mesh(devices)
    assert parallel.data_mesh().size == jax.device_count()


def fail(error):
    with parallel.all_alive("Start it again"):
        raise error


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])  # XLA's errors come as either
def test_a_lost_process_is_told_with_what_to_do(monkeypatch, kind):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ProcessLost, match=r"another process of this job is gone \(UNKNOWN: Gloo.*\)\. Start it again"):
        fail(kind(LOST))


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
        jax.errors.JaxRuntimeError("UNKNOWN: /runs/x/checkpoints: No space left on device"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected 2 buffers, got 1"),
        RuntimeError("a mistake in this code"),
        ValueError("another"),
    ],
)
def test_other_errors_stay_what_they_are(monkeypatch, error):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(type(error)) as found:
        fail(error)
    assert found.value is error


def test_a_process_alone_loses_none():
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
        fail(jax.errors.JaxRuntimeError(LOST))
