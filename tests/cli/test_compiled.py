"""What a command compiled is there for the next one."""

import os
import subprocess
import sys

SCRIPT = """
import jax
from llmdpd_jax.cli.main import keep_compiled

keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))).block_until_ready()
"""


def test_compiled_programs_are_kept_beside_the_weights(tmp_path):
    own = {"LLMDPD_CACHE": str(tmp_path / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | own
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, timeout=300)
    assert any((tmp_path / "cache" / "compiled").iterdir())
    elsewhere = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    subprocess.run([sys.executable, "-c", SCRIPT], env=elsewhere, check=True, timeout=300)
    assert any((tmp_path / "mine").iterdir())
