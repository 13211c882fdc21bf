"""From the named tensors of a checkpoint to the parameter tree of `llama.Llama`.

File formats differ in how tensors are stored, so each format opens its files as a `Checkpoint`, whose tensors bear the
Hugging Face names without the leading "model."; everything after that is common.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Tokenizer

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.llama import Llama, LlamaConfig

# Checkpoint name -> path in the parameter tree. Kernels are stored [out, in] there and [in, out] here.
TOP_NAMES = {"embed_tokens.weight": "embed/embedding", "norm.weight": "norm/scale"}
LAYER_NAMES = {
    "input_layernorm.weight": "layers/attention_norm/scale",
    "self_attn.q_proj.weight": "layers/query/kernel",
    "self_attn.k_proj.weight": "layers/key/kernel",
    "self_attn.v_proj.weight": "layers/value/kernel",
    "self_attn.o_proj.weight": "layers/output/kernel",
    "post_attention_layernorm.weight": "layers/mlp_norm/scale",
    "mlp.gate_proj.weight": "layers/gate/kernel",
    "mlp.up_proj.weight": "layers/up/kernel",
    "mlp.down_proj.weight": "layers/down/kernel",
}
# Next-token scores, which are not computed, and a table that old checkpoints stored though it follows from the config.
UNUSED_NAMES = ("lm_head.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read one by one, when asked for."""

    source: str  # for messages
    config: LlamaConfig  # of the whole model
    tokenizer: Tokenizer
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the files
    read: Callable[[str], np.ndarray]


def tree_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameter tree of `Llama(config)`, by path joined with "/"."""
    variables = jax.eval_shape(Llama(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}


def expected_tensors(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and stored shape of every tensor that a checkpoint of `config` must hold."""
    shapes = tree_shapes(config)
    expected = {name: shapes[path] for name, path in TOP_NAMES.items() if path in shapes}
    for layer in range(config.num_layers):
        for name, path in LAYER_NAMES.items():
            # The leading axis is the layer; reversing the rest transposes a kernel and leaves a scale as it is.
            expected[f"layers.{layer}.{name}"] = shapes[path][:0:-1]
    return expected


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raises UserError that lists every tensor that is missing, of another shape than the config says, or unknown."""
    expected, found = expected_tensors(checkpoint.config), checkpoint.shapes
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [
        f"wrong shape: {name} is {list(found[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems += [
        f"unknown: {name} {list(shape)}"
        for name, shape in found.items()
        if name not in expected and not name.endswith(UNUSED_NAMES)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{checkpoint.source}: its tensors are not those of a Llama-family model:\n  {lines}")


def load_params(checkpoint: Checkpoint, config: LlamaConfig) -> dict:
    """Parameter tree of `Llama(config)`, `config` being the checkpoint's own or a truncation of it.

    Reads only the tensors that the tree holds. Raises UserError as `check_tensors` does, before anything is read.
    """
    check_tensors(checkpoint)

    def read(name: str) -> np.ndarray:
        return checkpoint.read(name).astype(jnp.dtype(config.dtype))

    flat = {path: read(name) for name, path in TOP_NAMES.items() if path != "norm/scale" or config.final_norm}
    for name, path in LAYER_NAMES.items():
        flat[path] = np.stack([read(f"layers.{layer}.{name}").T for layer in range(config.num_layers)])
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))
