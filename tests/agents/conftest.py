"""Tiny agents that differ in one thing each (`tiny`)."""

import pytest
from tiny import tiny_agent


@pytest.fixture(scope="session")
def tiny():
    return tiny_agent()


@pytest.fixture(scope="session")
def full_chain():
    """Differs in the policy improvement, and in what the denoiser predicts."""
    return tiny_agent({"agent.policy_improvement": "full_chain", "diffusion.parameterisation": "velocity"})


@pytest.fixture(scope="session")
def detached():
    """Differs in what teaches the prompts."""
    return tiny_agent({"agent.detach_context": True})


@pytest.fixture(scope="session")
def student():
    """Differs in the policy improvement: a student distilled from the denoiser."""
    return tiny_agent({"agent.policy_improvement": "student"})


@pytest.fixture(scope="session")
def chunked():
    """Differs in that an action is three steps."""
    return tiny_agent({"agent.chunk": 3})


@pytest.fixture(scope="session")
def transformer():
    """Differs in the denoiser, and in that an action is three steps."""
    return tiny_agent({"agent.chunk": 3, "model.denoiser": "dit", "model.heads": 2})


@pytest.fixture(scope="session")
def weighted():
    """Differs in the policy improvement: logged actions cloned by how good they are."""
    return tiny_agent({"agent.policy_improvement": "weighted"})
