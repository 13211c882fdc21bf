"""Behaviour policies of families whose experts are learned: snapshots of a learner, from its first steps to its last.

`llmdpd expert` trains them (`training.expert`); the files it writes lie in `expert_weights/` and come with the package.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import PLAIN, Behaviour, Frame, check_quality

FOLDER = Path(__file__).parent / "expert_weights"
LEAST_STD = 0.001  # of the actions before the tanh, as in Brax


@struct.dataclass
class Expert:
    """K snapshots of a Gaussian policy that is told the task parameters, squashed by tanh."""

    mean: jax.Array  # [K, I] of the inputs: observation and task parameters, as the family's `Frame` shows them
    std: jax.Array  # [K, I]
    kernels: tuple[jax.Array, ...]  # [K, in, out]; the last gives means and spreads of A actions
    biases: tuple[jax.Array, ...]  # [K, out]
    medium: int = struct.field(pytree_node=False)  # the snapshot whose score is nearest to half the last one's

    @property
    def snapshots(self) -> int:
        return len(self.mean)


def pre_action(expert: Expert, snapshot: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `[A]` before the tanh, for inputs `[I]`."""
    one = jax.tree.map(lambda x: jnp.asarray(x)[snapshot], expert)
    x = (inputs - one.mean) / one.std
    for i, (kernel, bias) in enumerate(zip(one.kernels, one.biases, strict=True)):
        x = x @ kernel + bias
        if i < len(one.kernels) - 1:
            x = jax.nn.swish(x)
    mean, spread = jnp.split(x, 2)
    return mean, jax.nn.softplus(spread) + LEAST_STD


@struct.dataclass
class Traits:
    """What one behaviour episode keeps throughout."""

    snapshot: jax.Array
    noise: jax.Array  # 1 where actions are drawn, 0 where the likeliest is taken
    random: jax.Array  # true where actions are uniform


def make_behaviour(expert: Expert, quality: str, drawn: bool = True, frame: Frame = PLAIN) -> Behaviour:
    """The policy of one of QUALITIES: uniform actions, one snapshot, or several in turn.

    The last snapshot's actions are its likeliest; others are drawn, unless `drawn` is false.

    Raises `UserError` for an unknown quality.
    """
    check_quality(quality)
    last = expert.snapshots - 1

    def draw(key, progress, parameters) -> Traits:
        del key, parameters
        newest = {"replay": expert.medium}.get(quality, last)
        turn = jnp.minimum(progress * (newest + 1), newest).astype(jnp.int32)
        snapshot = {"random": 0, "medium": expert.medium, "expert": last}.get(quality, turn)
        noise = jnp.float32(drawn and quality != "expert")
        return Traits(jnp.asarray(snapshot), noise, jnp.asarray(quality == "random"))

    def act(traits: Traits, parameters, observation, key) -> jax.Array:
        mean, std = pre_action(expert, traits.snapshot, frame.inputs(observation, parameters))
        key_normal, key_uniform = jax.random.split(key)
        learned = jnp.tanh(mean + traits.noise * std * jax.random.normal(key_normal, mean.shape))
        learned = frame.action(observation, parameters, learned)
        return jnp.where(traits.random, jax.random.uniform(key_uniform, mean.shape, minval=-1.0), learned)

    return Behaviour(draw, act)


def expert_file(family: str) -> Path:
    """Where the expert of a family lies that comes with the package."""
    return FOLDER / f"{family}.safetensors"


def expert_behaviour(family: str, quality: str, frame: Frame = PLAIN) -> Behaviour:
    """The behaviour policy of a family whose expert comes with the package."""
    return make_behaviour(load_expert(expert_file(family))[0], quality, frame=frame)


def save_expert(path: Path, expert: Expert, record: Mapping[str, Any]) -> None:
    """Writes snapshots in half precision (what they lose is far below their noise), and how they came to be."""
    arrays = {"mean": np.asarray(expert.mean, np.float32), "std": np.asarray(expert.std, np.float32)}
    for i, (kernel, bias) in enumerate(zip(expert.kernels, expert.biases, strict=True)):
        arrays |= {f"kernel_{i}": np.asarray(kernel, np.float16), f"bias_{i}": np.asarray(bias, np.float16)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, {"record": json.dumps({**record, "medium": expert.medium})})


@functools.cache
def load_expert(path: Path) -> tuple[Expert, dict[str, Any]]:
    """Snapshots and the record of their training. Raises `UserError` where the file is missing or no such file."""
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
            record = json.loads(file.metadata()["record"])
        layers = range(sum(name.startswith("kernel_") for name in arrays))
        kernels, biases = ([arrays[f"{kind}_{i}"] for i in layers] for kind in ("kernel", "bias"))
        return Expert(arrays["mean"], arrays["std"], tuple(kernels), tuple(biases), record["medium"]), record
    except FileNotFoundError:
        raise UserError(f"{path}: no such expert; `llmdpd expert` trains one") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not an expert as `llmdpd expert` writes it: {error}") from error
