"""`llmdpd doctor`: each problem is seen and comes with the command that mends it."""

import hashlib
import os
import sys

import jax
import pytest
from packaging.requirements import Requirement
from rich.console import Console

from llmdpd_jax.cli import doctor as module
from llmdpd_jax.cli.doctor import check_data_sets, check_devices, check_folders, check_packages, check_weights, doctor


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """Weights and one data set in temporary folders; gives the weights' path and hash."""
    weights = tmp_path / "cache" / "model.gguf"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    data = tmp_path / "minari" / "point_robot" / "mixed" / "train-00-v0" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text("{}")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(module, "check_packages", lambda: [])
    monkeypatch.setattr(module, "_FREE_SPACE", 0)
    return weights, hashlib.sha256(b"weights").hexdigest()


def run(weights, sha256) -> tuple[int, str]:
    console = Console(width=200)
    with console.capture() as capture:
        status = doctor(weights, sha256, console)
    return status, capture.get()


def test_all_well(healthy):
    status, text = run(*healthy)
    assert status == 0 and "Everything needed is here" in text
    assert "1 in " in text and "✘" not in text and "cpu" in text


def test_problems_are_counted_and_mended(healthy, monkeypatch, tmp_path):
    weights, sha256 = healthy
    weights.unlink()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    status, text = run(weights, sha256)
    assert status == 1 and "2 to mend" in text
    assert "llmdpd embed --fetch" in text and "llmdpd collect" in text


def test_damaged_weights_are_seen(healthy):
    weights, sha256 = healthy
    weights.write_bytes(b"weight")
    check = check_weights(weights, sha256)
    assert check.status == "problem" and "damaged" in check.detail and "llmdpd embed --fetch" in check.mend


def test_data_sets_are_counted_as_minari_counts_them(healthy, tmp_path):
    (tmp_path / "minari" / "namespace").mkdir()
    (tmp_path / "minari" / "namespace" / "metadata.json").write_text("{}")  # Minari's namespace file, no data set
    assert check_data_sets().detail.startswith("1 in")


def test_missing_and_old_packages():
    missing, old, fine = check_packages([Requirement(x) for x in ("no-such-thing[x]>=2", "numpy>=999", "numpy>=1")])
    assert (missing.status, missing.mend) == ("problem", 'pip install "no-such-thing[x]>=2"')
    assert old.status == "problem" and ">=999" in old.detail and old.mend == 'pip install "numpy>=999"'
    assert fine.status == "ok"


def test_packages_are_those_the_project_declares():
    names = [check.name for check in check_packages()]
    assert {"llmdpd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "brax", "minari", "gguf"} <= set(names)
    assert "torch" not in names and "ruff" not in names, "extras are optional"


def test_an_unused_gpu_is_noted_with_the_install_command(monkeypatch):
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices(backend="cpu"))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    check = check_devices()[-1]
    assert check.status == "note" and "NVIDIA H100" in check.detail
    assert check.mend == f'pip install "jax[cuda12]=={jax.__version__}"'
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert check_devices()[-1].mend == "unset JAX_PLATFORMS"


def test_a_gpu_is_found_by_the_drivers_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A'\necho 'NVIDIA B'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert module.nvidia_gpus() == ["NVIDIA A", "NVIDIA B"]
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert module.nvidia_gpus() == []
    monkeypatch.setenv("PATH", "")
    assert module.nvidia_gpus() == []


def test_a_backend_that_does_not_start_is_a_problem(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    (check,) = check_devices()
    assert check.status == "problem" and "backend 'tpu'" in check.detail and check.mend == "unset JAX_PLATFORMS"


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    (check,) = check_folders({"cache": tmp_path / "file" / "below"})
    assert check.status == "problem" and "cannot write" in check.detail and "LLMDPD_CACHE" in check.mend
    (check,) = check_folders({"cache": tmp_path / "new" / "below"})
    assert "writeable" in check.detail and not (tmp_path / "new").exists(), "looking makes no folders"


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FREE_SPACE", float("inf"))
    (check,) = check_folders({"data sets": tmp_path})
    assert check.status == "problem" and "free" in check.detail and "MINARI_DATASETS_PATH" in check.mend


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(module, "MINIMUM_PYTHON", (sys.version_info.major, sys.version_info.minor + 1))
    assert module.check_python().status == "problem"
