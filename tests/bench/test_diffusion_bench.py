"""`llmdpd bench train`, `sample` and `step-cost`: what is counted is right, and both sides compute the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.agents.diffusion_ql import POLICY_IMPROVEMENTS
from llmdpd_jax.bench import cost, diffusion, registry
from llmdpd_jax.cli.main import main


def test_counted_flops_by_hand():
    def chain(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    w, x = jnp.ones((5, 5)), jnp.ones((3, 5))
    forward = 7 * 2 * 3 * 5 * 5
    assert cost.counted_flops(jax.make_jaxpr(chain)(w, x).jaxpr) == forward
    slope = jax.grad(lambda w, x: chain(w, x).sum())
    assert cost.counted_flops(jax.make_jaxpr(jax.jit(slope))(w, x).jaxpr) == 3 * forward


def test_kernels_of_a_loop_count_as_often_as_it_runs():
    def body(x):
        return jnp.sin(jnp.cumsum(x @ x, axis=0))  # with a matrix product, no version of XLA makes one kernel of it

    x = jnp.ones((300, 300))
    looped = jax.jit(lambda x: jax.lax.scan(lambda x, _: (body(x), None), x, None, length=9)[0])
    once = cost.kernel_calls(jax.jit(body).lower(x).compile().as_text())
    nine = cost.kernel_calls(looped.lower(x).compile().as_text())
    assert 9 * once <= nine <= 9 * (once + 4) + 5


def test_a_call_counts_as_what_it_calls_unless_it_is_compiled_into_one_kernel():
    hlo = """
%twice.1 (a: f32[3]) -> f32[3] {
  %a = f32[3]{0} parameter(0)
  %b = f32[3]{0} sine(%a)
  ROOT %c = f32[3]{0} cosine(%b)
}

ENTRY %main.2 (x: f32[3]) -> f32[3] {
  %x = f32[3]{0} parameter(0)
  %y = f32[3]{0} call(%x), to_apply=%twice.1MARK
  ROOT %z = f32[3]{0} negate(%y)
}
"""
    assert cost.kernel_calls(hlo.replace("MARK", "")) == 3
    assert cost.kernel_calls(hlo.replace("MARK", ', frontend_attributes={xla_cpu_small_call="true"}')) == 2


@pytest.mark.parametrize("improvement", POLICY_IMPROVEMENTS)
@pytest.mark.parametrize("networks", diffusion.NETWORKS)
def test_an_update_computes_nothing_in_vain(networks, improvement):
    """As many FLOPs as counted by hand: no network is asked twice, and no gradient is taken that nobody needs."""
    config = diffusion.bench_config(networks, improvement)
    _, state, update = diffusion.single_task(config)
    done = cost.counted_flops(jax.make_jaxpr(update)(state, diffusion.bench_batch(), jax.random.key(0)).jaxpr)
    necessary = diffusion.necessary_flops(state.params, config)["update"] * diffusion.BATCH
    assert done == pytest.approx(necessary, rel=0.01)


def test_necessary_flops_of_the_full_chain_by_hand():
    config = diffusion.bench_config("peers' networks", "full_chain")
    _, state, _ = diffusion.single_task(config)
    hidden, width = 2 * 256 * 256, 256
    call = (6 + 17) * width + hidden + width * 6
    critic = 23 * width + hidden + width
    parts = {
        "cloning": 3 * (call + 16 * width) - (6 + 17 + 16) * width,
        "next actions": 5 * call,
        "chain": 3 * 5 * call - 5 * 17 * width - 6 * width,
        "Q": 2 * critic - 17 * width,
        "targets": 2 * critic,
        "temporal difference": 2 * (3 * critic - 23 * width),
    }
    found = diffusion.necessary_flops(state.params, config)
    assert found["update"] == 2 * sum(parts.values()) and found["chain"] == 2 * 5 * call


@pytest.mark.parity
@pytest.mark.parametrize("improvement", ["one_step", "full_chain"])
@pytest.mark.parametrize("networks", diffusion.NETWORKS)
def test_the_torch_side_computes_the_same(networks, improvement, tmp_path):
    pytest.importorskip("torch")
    file = str(tmp_path / "problem.npz")
    diffusion.write_problem(file, networks, improvement)
    shared = {"file": file, "improvement": improvement, "updates": 2, "batch": 3, "calls": 1}
    flax = diffusion.FlaxDiffusionQL(networks=networks, **shared)
    side, _ = diffusion.reference_side()
    settings = diffusion.torch_settings(diffusion.bench_config(networks, improvement))
    torch = side(**shared, settings=settings, threads=1, device="cpu")
    ours, theirs = flax.result(None), torch.result(None)
    assert ours.shape == theirs.shape and np.abs(ours).max() > 0.01
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max(), rtol=1e-3)
    # One update moves the parameters by the same: Adam's first step is as long for all but the least gradients.
    before = torch.params[0].detach().clone()
    torch.update()
    assert float((torch.params[0].detach() - before).abs().max()) == pytest.approx(settings["learning_rate"], rel=1e-3)
    assert torch.act(torch.seen).shape == (3, diffusion.ACTION)


@pytest.mark.slow
@pytest.mark.parity
def test_actions_beside_torch(tmp_path, monkeypatch, capfd):
    pytest.importorskip("torch")
    run = diffusion.run_sample
    monkeypatch.setattr(diffusion, "run_sample", lambda cpus, repeats: run(cpus, repeats, calls={1: 2, 8: 1}))
    file = tmp_path / "rows.json"
    assert main(["bench", "sample", "--threads=1", "--repeats=1", f"--json={file}"]) == 0
    rows = json.loads(file.read_text())["rows"]
    names = [f"sample/{way}, batch {size}" for way in ("chain", "student") for size in (1, 8)]
    assert [row["name"] for row in rows] == names
    assert all(row["ratio"] > 0 and row["reference"] == "torch one_step" for row in rows)


@pytest.mark.slow
def test_updates_without_torch(monkeypatch):
    monkeypatch.setattr(diffusion, "REFERENCE", "experiments.nowhere")
    monkeypatch.setattr(diffusion, "NETWORKS", {"default networks": {}})
    run = diffusion.run_train
    monkeypatch.setattr(diffusion, "run_train", lambda cpus, repeats: run(cpus, repeats, updates=1))
    done = registry.run_benchmark("train", registry.Settings(threads=1, repeats=1))
    assert [row.name.split(",")[0] for row in done.rows] == ["train/full_chain", "train/one_step", "train/student"]
    assert all(row.reference is None and 0 < row.peak_fraction < 1 for row in done.rows)
    assert "run from a checkout" in done.notes[0]
