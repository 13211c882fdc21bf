"""`llmdpd export`, from a run to a folder that acts and to a file of weights."""

import jax
import numpy as np

from llmdpd_jax import load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.export import load
from llmdpd_jax.export.weights import read_weights


def test_from_a_run_to_an_action(world, tiny_run, tmp_path, capsys):
    policy, out = load_policy(tiny_run), tmp_path / "x"
    texts = ["Navigate to position (0.31, -0.42).", "Navigate to position (-0.80, 0.77)."]
    options = ["--text", *texts, "--platforms", "cpu", "--steps=2", "--text-guidance=1.5"]
    assert main(["export", str(tiny_run), f"--out={out}", *options]) == 0
    said = capsys.readouterr().out
    assert "act.exported: observation, key, index; for cpu" in said and f"python {out / 'load.py'}" in said
    about, programs = load.load(out)
    assert (about["family"], about["horizon"]) == ("point_robot", 20)
    assert about["guidance"] == {"text": 1.5, "trajectory": 1.0, "critic": None}
    observation, key = np.float32([[0.1, 0.2], [-0.3, 0.4]]), jax.random.key(3)
    found = programs["act"](observation, jax.random.key_data(key), np.array([1, 0], np.int32))
    context = policy.prompt(texts[::-1])
    expected = policy.act(observation, context, key, steps=2, guidance={"text": 1.5})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prompts_are_left_open(world, tiny_run, tmp_path, capsys):
    out, prompts, lines = tmp_path / "x", tmp_path / "prompts.safetensors", tmp_path / "lines.txt"
    lines.write_text("Go to (0.3, 0.4)\n")
    assert main(["export", str(tiny_run), f"--out={out}", "--platforms", "cpu"]) == 0
    said = capsys.readouterr().out
    # The command that it names makes the prompts that it takes.
    command = next(line for line in said.splitlines() if "llmdpd embed" in line).split("llmdpd ")[1].split()
    command = [
        {"--file=LINES": f"--file={lines}", "--out=prompts.safetensors": f"--out={prompts}"}.get(a, a) for a in command
    ]
    assert main(command) == 0
    about, programs = load.load(out)
    context = load.make_context(about, programs, text=load.read_text(about, prompts))
    expected = load_policy(tiny_run).prompt("Go to (0.3, 0.4)")
    np.testing.assert_allclose(context[0, 0], expected.full, atol=1e-6)


def test_weights_alone(world, tiny_run, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(tiny_run), "--weights-only", f"--out={file}"]) == 0
    assert str(file) in capsys.readouterr().out
    read, policy = read_weights(file), load_policy(tiny_run)
    jax.tree.map(np.testing.assert_array_equal, read.params, policy.params)
    assert read.metadata == policy.checkpoint.metadata
