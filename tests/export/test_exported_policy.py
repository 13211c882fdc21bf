"""An exported policy acts where this package is not installed, and as the policy itself does."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
import pytest
from untrained import SIZES, logged, untrained_policy

from llmdpd_jax import Guidance
from llmdpd_jax.cli.embed import write_prompts
from llmdpd_jax.errors import UserError
from llmdpd_jax.export import load
from llmdpd_jax.export.folder import export_policy
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings
from llmdpd_jax.models.llm.weights import cache_folder
from llmdpd_jax.prompts.cache import cached_encode

JAX_ALONE = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers")
TEXTS = ["Moor at (0.31, -0.42)", "Moor at 61 m east"]
INDEX = np.array([1, 0, 1, 1, 0, 2, 1], np.int32)  # of two contexts: one is not there
OBSERVATION = np.random.default_rng(1).uniform(-1, 1, (7, SIZES[0])).astype(np.float32)
KEY = jax.random.key(5)
CHUNKS = {"agent.chunk": 3}


class Case(NamedTuple):
    """An export to compare with the policy it was made of."""

    changes: dict  # of the config
    texts: list[str] | None = None  # what it is told for good
    trajectories: int = 0  # how many it is shown for good
    options: Mapping = MappingProxyType({})  # of the export, and of `Policy.act`

    @property
    def shown(self) -> list[dict] | None:
        return [logged(seed, steps=4 + 3 * seed) for seed in range(self.trajectories)] or None


CASES = {
    "live": Case({}, options={"steps": 3}),
    "table": Case({}, TEXTS, 1, options={"guidance": Guidance(1.5, 0.5)}),
    "student": Case(
        CHUNKS | {"agent.policy_improvement": "student"},
        trajectories=1,
        options={"sampler": "student", "best_of": 2, "temperature": 0.5},
    ),
}
SLOW_CASES = {
    "transformer": Case(CHUNKS | {"model.denoiser": "dit"}, trajectories=2),
    "critic": Case({}, TEXTS[:1], options={"guidance": Guidance(critic=0.5), "sampler": "ancestral"}),
    "live": Case({"model.denoiser": "dit", "model.text_layers": 1}),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of the packages that are to be had beside an export, as links."""
    folder = tmp_path_factory.mktemp("packages")
    for name in JAX_ALONE:
        place = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        for found in (place, place.with_name(f"{name}.libs")):
            if found.is_dir():
                (folder / name).with_name(found.name).symlink_to(found)
    return folder


def run_alone(cases: dict[str, Case], llm: Path, packages: Path, root: Path) -> dict[str, tuple]:
    """For every case the policy, what policy.json says, and what the export gave without this package."""
    policies, made = {}, {}
    for name, case in cases.items():
        policy = policies.setdefault(str(case.changes), untrained_policy(llm, case.changes))
        files = [root / f"logged-{i}.npz" for i in range(case.trajectories)]
        for file, trajectory in zip(files, case.shown or [], strict=True):
            np.savez(file, **trajectory)
        about = export_policy(policy, root / name, texts=case.texts, trajectories=files or None, **case.options)
        assert json.loads((root / name / "policy.json").read_text()) == about
        key = jax.random.key_data(KEY)
        np.savez(root / f"{name}.inputs.npz", observation=OBSERVATION, key=key, index=INDEX, **logged(9))
        made[name] = policy, about
    encoder = TextEncoder(TextEncoderSettings(str(llm), 2))  # as `llmdpd embed --source=... --layer=2` makes it
    prompts = cached_encode(encoder, TEXTS, cache_folder() / "embeddings")
    write_prompts(root / "live.prompts.safetensors", prompts, TEXTS, encoder.identity)

    script = Path(__file__).with_name("run_alone.py")
    command = [sys.executable, "-I", "-S", script, packages, *(root / name for name in cases)]
    quick = str(int(jax.config.values["jax_disable_most_optimizations"]))
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": quick}
    subprocess.run(command, check=True, cwd=root, env=environment)
    return {name: (*parts, np.load(root / f"{name}.outputs.npz")) for name, parts in made.items()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, quickly, llm, packages):
    return run_alone(CASES, llm, packages, tmp_path_factory.mktemp("exports"))


def check_told_for_good(case: Case, policy, about, outputs):
    context = policy.prompt(case.texts, case.shown)
    several = len(context.full) > 1
    assert list(about["programs"]["act"]["arguments"]) == ["observation", "key"] + ["index"] * several
    for batch in (1, 7):
        own = jax.tree.map(lambda x, n=batch: x[INDEX[:n] % 2] if several else x[0], context)
        expected = np.array(policy.act(OBSERVATION[:batch], own, KEY, **case.options))
        if several:
            expected[INDEX[:batch] >= len(context.full)] = np.nan  # rather than another task's
        np.testing.assert_allclose(outputs[str(batch)], expected, rtol=1e-6, atol=1e-6)
    assert expected.shape == (7, *([3] if policy.chunk > 1 else []), 2) and np.nanstd(expected, axis=0).max() > 0.2
    assert about["programs"]["act"]["result"]["shape"] == ["batch", *expected.shape[1:]]


def check_told_when_used(case: Case, policy, about, outputs):
    contexts = {
        "none": policy.prompt(),
        "text": policy.prompt(TEXTS),
        "trajectory": policy.prompt(trajectory=logged(9)),
        "both": policy.prompt(TEXTS, logged(9)),
    }
    for name, context in contexts.items():
        context = jax.tree.map(np.atleast_2d, context)
        packed = np.stack([context.full, context.without_text, context.without_trajectory], axis=1)
        np.testing.assert_allclose(outputs[f"context {name}"], packed, rtol=1e-6, atol=1e-6)
        for batch in (1, 7):
            own = jax.tree.map(lambda x: x[-1], context)
            expected = policy.act(OBSERVATION[:batch], own, KEY, **case.options)
            np.testing.assert_allclose(outputs[f"{batch} {name}"], expected, rtol=1e-6, atol=1e-6)
    actions = [outputs[f"7 {name}"] for name in contexts]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(actions) for b in actions[:i])
    prompt = about["programs"]["prompt"]["arguments"]
    assert prompt["text"]["states"] == {"shape": ["batch", "tokens", 32], "dtype": "float32"}
    assert prompt["trajectory"]["next_observations"]["shape"] == ["batch", 5, 3]


@pytest.mark.parametrize("name", ["table", "student"])
def test_told_for_good(exports, name):
    check_told_for_good(CASES[name], *exports[name])


def test_told_when_it_is_used(exports):
    check_told_when_used(CASES["live"], *exports["live"])


@pytest.mark.slow
@pytest.mark.optimised
def test_other_networks_and_samplers(tmp_path, llm, packages):
    """Compiled as users compile."""
    made = run_alone(SLOW_CASES, llm, packages, tmp_path)
    for name, case in SLOW_CASES.items():
        (check_told_when_used if name == "live" else check_told_for_good)(case, *made[name])


def test_what_an_export_says_of_itself(exports):
    policy, about, _ = exports["table"]
    units = policy.checkpoint.statistics
    np.testing.assert_array_equal(np.float32(about["action_low"]), units.action_low)
    np.testing.assert_array_equal(np.float32(about["action_high"]), units.action_high)
    assert about["contexts"] == [{"text": text, "trajectory": "logged-0.npz"} for text in TEXTS]
    assert about["guidance"] == {"text": 1.5, "trajectory": 0.5, "critic": None}
    expected = {"platforms": ["cpu", "cuda", "tpu"], "sampler": "ddim", "steps": 5, "best_of": 1, "chunk": 1}
    expected |= {"family": "harbour", "horizon": 15, "checkpoint": "runs/x/checkpoints/7"}
    assert expected.items() <= about.items()
    hashes = [exports[name][1]["weights_sha256"] for name in ("table", "live", "student")]
    assert hashes[0] == hashes[1] != hashes[2]
    chunked = exports["student"][1]
    assert (chunked["chunk"], chunked["execute"], chunked["contexts"][0]["text"]) == (3, 3, None)
    assert exports["live"][1]["contexts"] is None and exports["live"][1]["steps"] == 3


def test_replacing_an_export(exports, llm, tmp_path):
    """An export is replaced, without leaving a program of the earlier one, and nothing else is."""
    policy, out = exports["live"][0], tmp_path / "x"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things than an export"):
        export_policy(policy, out)
    (out / "notes.txt").unlink()
    export_policy(policy, out, platforms=["cpu"])
    assert sorted(path.name for path in out.iterdir()) == ["act.exported", "load.py", "policy.json", "prompt.exported"]
    np.savez(tmp_path / "logged.npz", **logged())
    export_policy(policy, out, platforms=["tpu"], trajectories=[tmp_path / "logged.npz"])
    assert sorted(path.name for path in out.iterdir()) == ["act.exported", "load.py", "policy.json"]
    program = jax.export.deserialize(bytearray((out / "act.exported").read_bytes()))
    assert program.platforms == ("tpu",)


def test_an_llm_that_embed_cannot_stand_for(llm, tmp_path):
    policy = untrained_policy(llm, {"text.repeat": False})
    with pytest.raises(UserError, match="give what it is to be told at the export, with --text or --trajectory"):
        export_policy(policy, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_prompts_of_another_llm(exports, llm, tmp_path):
    _, about, _ = exports["live"]
    encoder = TextEncoder(TextEncoderSettings(str(llm), 1))
    write_prompts(tmp_path / "other.safetensors", cached_encode(encoder, TEXTS, tmp_path), TEXTS, encoder.identity)
    with pytest.raises(ValueError, match=r"other\.safetensors: was not read by the LLM of this policy"):
        load.read_text(about, tmp_path / "other.safetensors")
