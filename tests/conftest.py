"""Fixtures shared by all tests."""

import dataclasses
import gc
import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from minari.data_collector import EpisodeBuffer
from tiny_llama import CONFIG, tiny_tensors, write_folder

from llmdpd_jax import Policy, load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.tasks.manifest import load_manifest, save_manifest

jax.config.update("jax_enable_compilation_cache", False)  # commands would fill the user's
# Fast tests wait for the compiler, not for what it compiled (`optimised`, below).
jax.config.update("jax_disable_most_optimizations", True)

BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
OBSERVATION = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
REPOSITORY = Path(__file__).parent.parent
MOST_MAPS = 40_000  # memory areas of a process, a dozen for each compiled function; Linux allows 65,530


def pytest_configure(config):
    """Has XLA compile with its older emitters, in half the time, where slow tests are left out: some of those compare
    what rounding would tell apart. Whoever sets XLA_FLAGS decides; workers and subprocesses inherit them."""
    if "XLA_FLAGS" in os.environ:
        return
    flag = ""
    if "not slow" in config.option.markexpr:
        flag = "--xla_cpu_use_fusion_emitters=false"
        # A process ends at a flag that its XLA does not know, so let it be another one.
        attempt = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
        if subprocess.run(attempt, env=environment, capture_output=True).returncode:
            flag = ""
    os.environ["XLA_FLAGS"] = flag


@pytest.fixture(autouse=True)
def optimised(request):
    """Compiles as users do in tests that compute much, or are marked for it."""
    much = any(request.node.get_closest_marker(mark) for mark in ("parity", "weights", "optimised"))
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", before and not much)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def few_compiled():
    """Lets go of compiled functions before a process holds so many that the compiler dies of the next one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    """An empty folder that Minari reads and writes during the test."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


@pytest.fixture
def write_dataset(minari_root):
    """`write_dataset(id, episodes)` writes a Minari data set of episodes as `logged.make_episode` gives them."""

    def write(name, episodes, observation_space=OBSERVATION, action_space=BOX):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.create_dataset_from_buffers(
                name,
                [EpisodeBuffer(**episode) for episode in episodes],
                observation_space=observation_space,
                action_space=action_space,
            )

    return write


@dataclasses.dataclass(frozen=True)
class World:
    """Logged point_robot data of a few tasks and an LLM with random weights: all that a run of seconds needs."""

    folder: Path
    manifest: Path
    llm: Path

    def environment(self) -> dict[str, str]:
        """Variables that keep a process inside this folder, and spare it compiling what another one compiled."""
        return {
            "MINARI_DATASETS_PATH": str(self.folder / "minari"),
            "LLMDPD_CACHE": str(self.folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }

    def config(self, **changes) -> list[str]:
        """Command-line arguments of a tiny config; a change is given as section__field=value."""
        fields = {
            "data.manifest": self.manifest,
            "data.groups": 4,
            "data.group_size": 4,
            "text.source": self.llm,
            "text.layer": 2,
            "model.context_width": 16,
            "model.model_width": 16,
            "model.width": 16,
            "model.depth": 1,
            "model.text_layers": 0,
            "model.trajectory_layers": 1,
            # Compiled into the update (learning rate): tests that leave it alone share one compilation.
            "train.steps": 6,
            "train.log_every": 2,
            "train.checkpoint_every": 4,
            "evaluation.episodes": 2,
        } | {name.replace("__", "."): value for name, value in changes.items()}
        return [
            f"--config={REPOSITORY / 'configs' / 'point_robot.py'}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ]


@pytest.fixture(scope="session")
def made_world(tmp_path_factory) -> World:
    """The world, made once; ask for `world`, which also sets the process up for it."""
    folder = tmp_path_factory.mktemp("world")
    # The descriptions, read twice, are longer than the other tests' LLM allows.
    llm = write_folder(folder / "llm", tiny_tensors(), CONFIG | {"max_position_embeddings": 512})
    made = World(folder, folder / "tasks.json", llm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        assert main(["collect", "--episodes=4", f"--out={folder / 'all'}"]) == 0
        manifest = load_manifest(folder / "all")
    tasks = [task for split in ("train", "test") for task in manifest.tasks if task.split == split]
    few = [
        dataclasses.replace(
            task, descriptions=task.descriptions[:2], held_out_descriptions=task.held_out_descriptions[:1]
        )
        for task in tasks[:5] + tasks[-3:]
    ]
    save_manifest(dataclasses.replace(manifest, tasks=tuple(few)), made.manifest)
    return made


@contextmanager
def inside(world: World):
    """The process's data sets, caches and compilations are in the world's folder."""
    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(world.folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment().items():
            patch.setenv(name, value)
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it keeps to the folder it first saw
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def world(made_world) -> World:
    """A tiny world to train in, with the process set up for it."""
    with inside(made_world):
        yield made_world


@pytest.fixture(scope="session")
def tiny_run(made_world) -> Path:
    """The folder of a finished run in the tiny world. Copy it before changing it."""
    run = made_world.folder / "run"
    with inside(made_world):
        assert main(["train", *made_world.config(), f"--out={run}"]) == 0
    return run


@pytest.fixture(scope="session")
def load_lively_policy():
    """`load_policy` with noise on the parameters: after a few updates a network says the same to everything."""

    def load(path) -> Policy:
        checkpoint = load_policy(path).checkpoint
        leaves, tree = jax.tree.flatten(checkpoint.state.ema)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
        ema = tree.unflatten(noisy)
        # Both prompts count the same; with noise on the confidences one may be trusted alone.
        ema["prompt_encoder"]["confidence"] = jax.tree.map(jnp.zeros_like, ema["prompt_encoder"]["confidence"])
        return Policy(checkpoint._replace(state=checkpoint.state.replace(ema=ema)))

    return load


@pytest.fixture(scope="session")
def load_example():
    """`load_example(name)` gives a script of `experiments` as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def subprocess_environment() -> dict[str, str]:
    """Variables of this process, with this checkout first on the import path."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="session")
def eight_devices(subprocess_environment) -> dict[str, str]:
    """Variables of a process that sees eight CPU devices; they share a CPU."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    return subprocess_environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What shares fixtures or compiled functions goes to one worker (`--dist loadgroup`), so that they are made once:
    the tests in the tiny world, those of agents, and otherwise those of a file."""
    for item in items:
        if "made_world" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("world"))
        elif item.get_closest_marker("xdist_group") is None:
            folder = item.path.parent.name
            item.add_marker(pytest.mark.xdist_group(folder if folder == "agents" else f"{folder}-{item.path.stem}"))
