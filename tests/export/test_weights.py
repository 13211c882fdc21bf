"""Weights alone: what is read back is what the policy has, and acts as it does."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from untrained import untrained_policy

from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.config import from_json
from llmdpd_jax.errors import UserError
from llmdpd_jax.export.weights import read_weights, write_weights


@pytest.fixture
def policy(llm):
    return untrained_policy(llm, {"agent.policy_improvement": "student"})


def test_round_trip(policy, tmp_path, quickly):
    file = tmp_path / "weights.safetensors"
    assert write_weights(file, policy.checkpoint) == file.stat().st_size
    read, checkpoint = read_weights(file), policy.checkpoint
    jax.tree.map(np.testing.assert_array_equal, read.params, policy.params)
    jax.tree.map(np.testing.assert_array_equal, read.statistics, checkpoint.statistics)
    jax.tree.map(np.testing.assert_array_equal, read.text_statistics, checkpoint.text_statistics)
    assert read.metadata == checkpoint.metadata and set(read.params) == {
        *("prompt_encoder", "denoiser", "student", "critic")
    }
    config = from_json(read.metadata["config"], str(file))
    agent = make_agent(config, read.metadata["observation_size"], read.metadata["action_size"])
    given = np.ones((4, 3), np.float32), policy.prompt(), jax.random.key(2)
    expected = checkpoint.agent.act(policy.params, *given, sampler="student")
    np.testing.assert_array_equal(agent.act(read.params, *given, sampler="student"), expected)


def test_what_other_programs_see(policy, tmp_path):
    write_weights(tmp_path / "weights.safetensors", policy.checkpoint)
    with safe_open(tmp_path / "weights.safetensors", "numpy") as file:
        kernel = file.get_tensor("params/denoiser/out/kernel")
        assert json.loads(file.metadata()["config"])["data"]["prompt_length"] == 5
        assert json.loads(file.metadata()["checkpoint"])["manifest"]["family"] == "harbour"
        assert {"statistics/action_low", "text_statistics/state_axes"} <= set(file.keys())
    np.testing.assert_array_equal(kernel, policy.params["denoiser"]["out"]["kernel"])


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("go")
    with pytest.raises(UserError, match="not weights as"):
        read_weights(tmp_path / "text.safetensors")
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors", {"config": "{}", "checkpoint": "{}"})
    with pytest.raises(UserError, match="not weights as"):
        read_weights(tmp_path / "other.safetensors")
