"""Fixtures shared by all tests."""

import pytest


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    """An empty folder that Minari reads and writes during the test."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root
