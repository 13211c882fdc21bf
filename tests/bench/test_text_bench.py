"""`llmdpd bench text` with a tiny LLM: its figures belong together, and both sides compute the same."""

import importlib.util
import json
import re

import numpy as np
import pytest
from tiny_llama import CONFIG, tiny_tensors, write_folder

from llmdpd_jax.bench import peak, registry, text
from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    config = CONFIG | {"max_position_embeddings": 512}
    return str(write_folder(tmp_path_factory.mktemp("llm"), tiny_tensors(), config))


@pytest.fixture
def few_texts(monkeypatch):
    """The benchmark on eight texts, cut at layer 2 of 3."""
    run = text.run
    monkeypatch.setattr(text, "run", lambda source, cpus, repeats: run(source, cpus, repeats, layer=2, count=8))


def test_flops_by_hand():
    params = {"embed": {"embedding": np.ones((9, 9))}, "layers": {"up": {"kernel": np.ones((2, 3, 5))}}}
    assert text.matmul_flops(params, tokens=7) == 2 * 7 * 2 * 3 * 5
    assert peak.flops_per_second(lambda: None, 100) > 2e6


def test_texts_are_distinct_and_read_through_the_encoder(llm):
    texts = text.bench_texts(llm, 20)
    assert len(set(texts)) == 20
    assert not any(re.search(r"\d\.\d", written) for written in texts)  # numbers are hidden


def test_the_flax_side(llm):
    texts = text.bench_texts(llm, 8)
    side = text.FlaxText(llm, 2, texts)
    facts = side.facts()
    tokens = sum(map(len, facts["tokens"]))
    # query, key, value, output; gate, up, down: 2 layers
    assert facts["flops"] == 2 * tokens * 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    assert sum(map(len, facts["places"])) == len(side.result(None))
    assert tokens / 4 < facts["batch_tokens"] < tokens  # several batches, but not many
    assert text.FlaxText(llm, None, texts).encoder.config.num_layers == 3


def test_a_named_source_is_fetched_first(llm, monkeypatch):
    """Both sides are told its path; and a model of fewer blocks than the default layer is cut after its last."""
    started = []

    class Side:
        def __init__(self, name, side, arguments, cpus):
            started.append((name, arguments["source"], arguments["layer"]))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def ask(self, **what):
            raise UserError("asked")

    monkeypatch.setattr(text, "fetch_weights", {"minilm": llm}.get)
    monkeypatch.setattr(text, "bench_texts", lambda source, count: [])
    monkeypatch.setattr(text, "Worker", Side)
    with pytest.raises(UserError, match="asked"):
        text.run("minilm", [0], repeats=1)
    assert started == [("Flax, whole", llm, None), ("Flax, layer 3", llm, 3)]


@pytest.mark.slow
def test_without_torch(llm, few_texts, tmp_path, capfd, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    file = tmp_path / "rows.json"
    assert main(["bench", "text", f"--source={llm}", "--repeats=1", f"--json={file}"]) == 0
    said = capfd.readouterr().out
    assert "torch not installed" in said and "parity" in said and str(file) in said
    rows = json.loads(file.read_text())["rows"]
    names = ["text/whole", "text/layer 2", "text/whole, memory", "text/layer 2, memory"]
    assert [row["name"] for row in rows] == names
    assert all(row["reference"] is row["ratio"] is None for row in rows)
    assert all(0 < row["peak_fraction"] < 1 for row in rows[:2])


@pytest.mark.slow
@pytest.mark.parity
def test_against_transformers(llm, few_texts):
    pytest.importorskip("torch")
    done = registry.run_benchmark("text", registry.Settings(threads=1, repeats=1, source=llm))
    whole, cut = "transformers", "transformers cut"
    speed, memory = done.rows[:3], done.rows[3:]
    assert [(row.name, row.reference) for row in speed] == [
        ("text/whole", whole),
        ("text/layer 2", whole),
        ("text/layer 2", cut),
    ]
    assert [row.unit for row in (*speed, *memory)] == ["prompts/s"] * 3 + ["MB"] * 3
    assert speed[0].reference_value == speed[1].reference_value and speed[1].value == speed[2].value
    assert all(100 < row.value < 5000 and 100 < row.reference_value < 5000 for row in memory)
    assert not done.notes and {row.threads for row in done.rows} == {1}


@pytest.mark.parity
def test_the_torch_side_computes_the_same(llm):
    pytest.importorskip("torch")
    texts = text.bench_texts(llm, 8)
    whole, cut = text.FlaxText(llm, None, texts), text.FlaxText(llm, 2, texts)
    given = {name: whole.facts()[name] for name in ("tokens", "places", "batch_tokens")}
    given |= {"threads": 1, "device": "cpu"}
    torch_whole, torch_cut = text.TorchText(llm, None, **given), text.TorchText(llm, 2, **given)
    assert torch_whole.model.config._attn_implementation == "sdpa" and not torch_whole.model.training

    def difference(ours, theirs):
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

    assert difference(whole.result(None), torch_whole.result(None)) < 1e-4
    assert difference(cut.result(None), torch_whole.result(2)) < 1e-4
    assert difference(cut.result(None), torch_cut.result(None)) < 1e-4
    assert difference(cut.result(None), torch_whole.result(None)) > 0.1


def test_states_that_differ_stop_the_comparison():
    class Fixed:
        name = "fixed"

        def __init__(self, states):
            self.states = states

        def result(self, layer=None):
            return self.states

    ones = np.ones((3, 2))
    text.check_same(Fixed(ones), Fixed(ones * (1 + 1e-5)))
    for other in (ones * 1.01, np.ones((2, 2)), ones * np.nan):
        with pytest.raises(UserError, match="do not compute the same"):
            text.check_same(Fixed(ones), Fixed(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no 'nothing'; choose train, sample"),
        (["text", "--repeats=0"], "repeats: expected a whole number from 1"),
        (["text", "--threads=9999"], "threads: this process may use 1 to"),
        (["text", "--source=absent.gguf"], "absent.gguf"),
        (["text", "--json=."], "is a folder"),
    ],
)
def test_wrong_options(arguments, message, capfd):
    assert main(["bench", *arguments]) == 2
    assert message in capfd.readouterr().err
