"""`llmdpd doctor`: what is installed, which devices JAX sees, whether weights and data are there.

For each problem it prints the command that mends it.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

DISTRIBUTION = "llmdpd-jax"
MINIMUM_PYTHON = (3, 11)
_FREE_SPACE = 2e9  # bytes: weights, embeddings, data sets and checkpoints of the standard runs fit into this
_MARKS = {"ok": ("✔", "green"), "note": ("!", "yellow"), "problem": ("✘", "bold red")}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: str  # "ok"; "note": works, but look at it; "problem": something needed is not there
    detail: str
    mend: str = ""  # the command that mends it


def doctor(weights: Path, weights_sha256: str, console: Console | None = None) -> int:
    """Print the state of the installation, with the command that mends each problem.

    Args:
        weights: where the default LLM's weights are kept.
        weights_sha256: the hash their content must have, hexadecimal.
        console: where to print, standard output if None.

    Returns:
        Exit status: 0 if everything needed to train is there, 1 if something is missing.
    """
    console = console or Console()
    sections = {
        "Packages": [check_python(), *check_packages(), *check_extras()],
        "Devices": check_devices(),
        "Weights and data": [check_weights(weights, weights_sha256), check_data_sets()],
        "Disk": check_folders({"working folder": Path.cwd(), "cache": weights.parent, "data sets": minari_root()}),
    }
    for title, checks in sections.items():
        table = Table(title=Text(title), title_style="bold", title_justify="left", box=None, show_header=False)
        for check in checks:
            mark, style = _MARKS[check.status]
            table.add_row(Text(mark, style=style), Text(check.name), Text(check.detail))
        console.print(table, "")
    checks = [check for section in sections.values() for check in section]
    for check in checks:
        if check.mend:
            mark, style = _MARKS[check.status]
            console.print(Text(f"{mark} {check.name}: ", style=style) + Text(check.detail, style="default"))
            # One line however long, so that it can be copied.
            console.print(Text(f"    {check.mend}", style="bold"), soft_wrap=True)
    problems = sum(check.status == "problem" for check in checks)
    if problems:
        console.print(Text(f"{problems} to mend.", style="bold red"))
        return 1
    console.print(Text("Everything needed is here.", style="bold green"))
    return 0


# --- Packages ---------------------------------------------------------------------------------------------------------


def check_python() -> Check:
    """The interpreter itself."""
    found = platform.python_version()
    if sys.version_info >= MINIMUM_PYTHON:
        return Check("Python", "ok", f"{found} ({sys.executable})")
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    return Check("Python", "problem", f"{found}; {wanted} or newer is needed", f"python{wanted} -m venv .venv")


def _requirements() -> list[Requirement]:
    """What the installed package declares; empty if the code runs from a folder that was never installed."""
    try:
        return [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(requirements: Iterable[Requirement] | None = None) -> list[Check]:
    """This package, and one check for each package it needs; by default those it declares, with jaxlib added."""
    checks = []
    if requirements is None:
        own = _version(DISTRIBUTION)
        if own is None:
            return [Check(DISTRIBUTION, "problem", "not installed", "pip install -e .")]
        checks.append(Check(DISTRIBUTION, "ok", own))
        needed = [requirement for requirement in _requirements() if requirement.marker is None]
        jax_at = [requirement.name for requirement in needed].index("jax") + 1
        requirements = [*needed[:jax_at], Requirement("jaxlib"), *needed[jax_at:]]
    for requirement in requirements:
        found = _version(requirement.name)
        if found is None:
            detail = "not installed"
        elif not requirement.specifier.contains(found, prereleases=True):
            detail = f"{found}; {requirement.specifier} is needed"
        else:
            checks.append(Check(requirement.name, "ok", found))
            continue
        checks.append(Check(requirement.name, "problem", detail, f'pip install "{requirement}"'))
    return checks


def check_extras(extras: Sequence[str] = ("parity", "dev")) -> list[Check]:
    """Packages that only some uses need: a missing one is no problem."""
    checks = []
    for extra in extras:
        for requirement in _requirements():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                found = _version(requirement.name)
                checks.append(Check(requirement.name, "ok", found or f"not installed (optional, extra {extra})"))
    return checks


# --- Devices ----------------------------------------------------------------------------------------------------------


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver's own tool lists; empty without the tool or the driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.split("\n")[:-1] if result.returncode == 0 else []


def check_devices() -> list[Check]:
    """What JAX computes on, and whether it leaves an NVIDIA GPU unused."""
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        # JAX raises RuntimeError when the platform named in JAX_PLATFORMS has no device.
        first_line = str(error).splitlines()[0]
        mend = "unset JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS") else 'pip install --force-reinstall "jax"'
        return [Check("JAX", "problem", f"cannot start: {first_line}", mend)]
    checks = []
    for kind in dict.fromkeys((device.platform, device.device_kind) for device in devices):
        count = sum((device.platform, device.device_kind) == kind for device in devices)
        cores = f", {os.cpu_count()} cores" if kind[0] == "cpu" else f" ({kind[1]})"
        checks.append(Check("JAX device", "ok", f"{count} × {kind[0]}{cores}"))
    unused = nvidia_gpus()
    if unused and all(device.platform == "cpu" for device in devices):
        detail = f"{len(unused)} × {unused[0]} found, but JAX uses the CPU"
        if os.environ.get("JAX_PLATFORMS"):
            detail += f" (JAX_PLATFORMS={os.environ['JAX_PLATFORMS']})"
            mend = "unset JAX_PLATFORMS"
        else:
            mend = f'pip install "jax[cuda12]=={jax.__version__}"'
        checks.append(Check("NVIDIA GPU", "note", detail, mend))
    return checks


# --- Weights and data -------------------------------------------------------------------------------------------------


def check_weights(path: Path, sha256: str) -> Check:
    """Whether the LLM's weights are there and whole."""
    if not path.is_file():
        return Check("LLM weights", "problem", f"not found at {path}", "llmdpd embed --fetch")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        detail = f"{path} is damaged (SHA-256 {found[:12]}…, should be {sha256[:12]}…)"
        return Check("LLM weights", "problem", detail, f'rm "{path}" && llmdpd embed --fetch')
    return Check("LLM weights", "ok", f"{path} ({path.stat().st_size / 1e6:.0f} MB)")


def minari_root() -> Path:
    """The folder Minari keeps data sets in: $MINARI_DATASETS_PATH, by default ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()


def check_data_sets() -> Check:
    """Whether Minari's folder has data sets. Found by Minari's own layout, `<id>/data/metadata.json`."""
    root = minari_root()
    count = sum(1 for _ in root.glob("**/data/metadata.json"))
    if count == 0:
        return Check("Minari data sets", "problem", f"none in {root}", "llmdpd collect")
    return Check("Minari data sets", "ok", f"{count} in {root}")


# --- Disk -------------------------------------------------------------------------------------------------------------


def check_folders(folders: dict[str, Path]) -> list[Check]:
    """Whether each folder, or the one it would be made in, can be written to and has space left."""
    checks = []
    variables = {"cache": "LLMDPD_CACHE", "data sets": "MINARI_DATASETS_PATH"}
    for name, folder in folders.items():
        mend = f"export {variables[name]}=/folder/to/use" if name in variables else "cd /folder/to/use"
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            # Permission bits do not tell of read-only mounts and quotas; a file does.
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            checks.append(Check(name, "problem", f"{folder}: cannot write ({error.strerror})", mend))
            continue
        free = shutil.disk_usage(existing).free
        detail = f"{folder}: writeable, {free / 1e9:.1f} GB free"
        if free < _FREE_SPACE:
            checks.append(Check(name, "problem", f"{detail}; {_FREE_SPACE / 1e9:.0f} GB are needed", mend))
        else:
            checks.append(Check(name, "ok", detail))
    return checks
