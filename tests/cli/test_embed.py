"""`llmdpd embed`: where descriptions come from, where prompts go, and what becomes of the cache."""

import io
import json
import sys

import numpy as np
import pytest
from safetensors import safe_open
from tiny_llama import tiny_tensors, write_folder

from llmdpd_jax.cli.main import main
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings

LINES = ["go to (0.31, -0.42)", "stay", "run at minus two metres per second"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("llm"), tiny_tensors()))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def run(capfd):
    """`run(*arguments)`: exit status, standard output and the message of `llmdpd embed`."""

    def embed(*arguments):
        capfd.readouterr()
        status = main(["embed", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, next((line for line in err.splitlines() if line.startswith("error: ")), "")

    return embed


def type_in(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_lines_become_prompts_in_a_file(run, llm, cache, tmp_path):
    file, out = tmp_path / "lines.txt", tmp_path / "prompts.safetensors"
    file.write_bytes("\r\n".join(LINES).encode() + b"\r\n")
    status, said, _ = run(f"--file={file}", f"--source={llm}", "--layer=2", f"--out={out}")
    assert status == 0 and "3 descriptions" in said and str(out) in said
    expected = TextEncoder(TextEncoderSettings(source=llm, layer=2)).encode(LINES)
    with safe_open(out, "np") as stored:
        assert json.loads(stored.metadata()["descriptions"]) == LINES
        assert json.loads(stored.metadata()["text_encoder"])["layer"] == 2
        assert sorted(stored.keys()) == ["mask", "number_index", "numbers", "states"]
        for name in stored.keys():  # noqa: SIM118 (not a dict)
            array = getattr(expected, name)
            assert stored.get_tensor(name).dtype == array.dtype
            np.testing.assert_allclose(stored.get_tensor(name), array, rtol=1e-5, atol=1e-5)
    assert len(list(cache.glob("*/*.safetensors"))) == 3


def test_standard_input(run, llm, cache, monkeypatch):
    type_in(monkeypatch, "stay\ngo 北\n".encode())
    assert run("--file=-", f"--source={llm}", "--layer=1")[0] == 0
    assert len(list(cache.glob("*/*.safetensors"))) == 2


def test_manifest(run, llm, cache, tmp_path):
    tasks = [
        {"name": "a", "split": "train", "dataset": "a-v0", "descriptions": ["go 1 up", "go 2 up"]},
        {"name": "b", "split": "test", "dataset": "b-v0", "descriptions": ["stay"], "held_out_descriptions": ["halt"]},
    ]
    manifest = tmp_path / "tasks.json"
    manifest.write_text(json.dumps({"tasks": tasks}))
    status, said, _ = run(f"--manifest={manifest}", f"--source={llm}", "--layer=1")
    assert status == 0 and "4 descriptions" in said
    assert len(list(cache.glob("*/*.safetensors"))) == 3  # of two, only the numbers differ


def test_list_and_clear_by_source_and_layer(run, llm, cache, tmp_path):
    assert "empty" in run("--list")[1]
    lines = tmp_path / "lines"
    lines.write_text("stay\ngo\n")
    for layer in (1, 2):
        assert run(f"--file={lines}", f"--source={llm}", f"--layer={layer}")[0] == 0
    old = cache / f"{'0' * 64}.safetensors"
    old.write_bytes(b"12345")
    (cache / "notes.txt").write_text("not of the cache")
    said = run("--list")[1]
    assert "unknown" in said and [line.split()[-2:] for line in said.splitlines() if "all" in line.split()[0]]
    entries = {word for line in said.splitlines() for word in line.split()}
    assert {"1", "2", "5"} <= entries  # layers and entries of each; 5 entries in all

    assert "holds no embeddings of smollm2" in run("--clear", "--yes")[1]
    assert "deleted 2 embeddings" in run("--clear", "--yes", f"--source={llm}", "--layer=2")[1]
    assert len(list(cache.glob("*/*.safetensors"))) == 2
    assert "deleted 2 embeddings" in run("--clear", "--yes", f"--source={llm}")[1]
    assert "deleted 1 embeddings of all" in run("--clear", "--yes", "--all")[1]
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


def test_clearing_asks(run, cache, monkeypatch):
    cache.mkdir(parents=True)
    entry = cache / f"{'0' * 64}.safetensors"
    entry.write_bytes(b"12345")
    type_in(monkeypatch, b"")
    assert "--yes" in run("--clear", "--all")[2]
    type_in(monkeypatch, b"n\n")
    assert "nothing deleted" in run("--clear", "--all")[1] and entry.exists()
    type_in(monkeypatch, b"y\n")
    assert "deleted 1" in run("--clear", "--all")[1] and not entry.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no description"),
        (b"\n \n", "holds no description"),
        (b"go\n\nstay\n", "lines, line 2: empty"),
        (b"go \xff\n", "lines: not UTF-8 text, at byte 3"),
        (b"go " * 100, "the model reads at most 128"),
        (b"go to 1e99", "beyond the range of float32"),
    ],
)
def test_wrong_lines(run, llm, cache, tmp_path, content, message):
    file = tmp_path / "lines"
    file.write_bytes(content)
    status, said, error = run(f"--file={file}", f"--source={llm}", "--layer=1")
    assert (status, said) == (2, "") and message in error
    assert not list(cache.glob("*/*.safetensors"))


def test_wrong_options(run, llm, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("go\n")
    for arguments, message in {
        (): "give one of --fetch, --list, --clear, --manifest, --file; found none",
        ("--list", "--clear"): "found --list and --clear",
        ("--list", "--yes"): "--yes goes with --clear, not with --list",
        ("--list", "--source=minilm"): "--source goes with --fetch or --clear or --manifest or --file, not with --list",
        ("--fetch", "--layer=3"): "--layer goes with --clear or --manifest or --file, not with --fetch",
        ("--clear", "--out=x.safetensors"): "--out goes with --manifest or --file",
        ("--clear", "--all", f"--source={llm}"): "leave out --source and --layer",
        (f"--file={tmp_path}/none",): "none: cannot be read (No such file or directory)",
        (f"--file={lines}", f"--source={llm}", "--layer=9"): "9 is not a layer of this model",
        (f"--file={lines}", f"--source={llm}", "--batch-tokens=-1"): "batch_tokens: expected a whole number",
        (f"--file={lines}", f"--source={llm}", "--out=prompts.npz"): "FILE.safetensors",
        (f"--file={lines}", f"--source={llm}", f"--out={tmp_path}/no/x.safetensors"): f"no folder {tmp_path}/no",
    }.items():
        status, said, error = run(*arguments)
        assert (status, said) == (2, "") and message in error


def test_a_cache_that_cannot_be_written(run, llm, tmp_path, monkeypatch):
    lines = tmp_path / "lines"
    lines.write_text("go\n")
    monkeypatch.setenv("LLMDPD_CACHE", str(lines))
    status, _, error = run(f"--file={lines}", f"--source={llm}", "--layer=1")
    assert status == 2 and "embeddings cannot be kept there" in error
