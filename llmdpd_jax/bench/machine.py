"""What a benchmark needs to know of the machine. Imports neither JAX nor torch."""

import os
import platform
import re
import resource
import sys
from pathlib import Path

from llmdpd_jax.errors import UserError


def choose_cpus(threads: int | None) -> list[int]:
    """The CPUs that a benchmark may use: the first `threads` of those this process may, or all of them.

    Raises: UserError if there are not so many, or the system cannot keep a process to some of its CPUs.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads is not None:
            raise UserError(f"threads: {platform.system()} cannot keep a process to some CPUs; leave --threads out")
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= len(allowed):
        raise UserError(f"threads: this process may use 1 to {len(allowed)} CPUs, found {threads}")
    return allowed[:threads]


def keep_to_cpus(cpus: list[int]) -> None:
    """Keeps this process, and thereby thread pools that JAX starts later, to some CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def peak_memory() -> int:
    """The most memory this process has held at once, in bytes (resident set)."""
    # Linux lets a process start with the peak of the one that started it, but not in this file.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def held_memory() -> int | None:
    """The memory that this process holds now, in bytes (resident set); None where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found.group(1)) * 1024 if found else None


def device_name(device) -> str:
    """What a `jax.Device` is called in tables: JAX calls every processor just "cpu"."""
    return cpu_name() if device.platform == "cpu" else device.device_kind


def cpu_name() -> str:
    """The processor as the system calls it."""
    table = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", table.read_text(), re.MULTILINE) if table.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()
