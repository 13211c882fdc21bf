"""From the named tensors of a checkpoint to the parameter tree of a model.

File formats differ in how tensors are stored, so each format opens its files as a `Checkpoint`, whose tensors bear the
Hugging Face names without the leading "model." or "bert."; everything after that is common. Norm scales are what the
normed values are multiplied with: a format that leaves out a 1 adds it when reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from tokenizers import Tokenizer

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.bert import BertConfig
from llmdpd_jax.models.llm.decoder import VARIANTS
from llmdpd_jax.models.llm.layers import ModelConfig
from llmdpd_jax.models.llm.network import build

# Path in the parameter tree -> checkpoint name, with {} for the number of a layer. Kernels are stored [out, in] there
# and [in, out] here. No model has all paths of its table.
DECODER_NAMES = {
    "embed/embedding": "embed_tokens.weight",
    "norm/scale": "norm.weight",
    "layers/attention_norm/scale": "layers.{}.input_layernorm.weight",
    "layers/query/kernel": "layers.{}.self_attn.q_proj.weight",
    "layers/key/kernel": "layers.{}.self_attn.k_proj.weight",
    "layers/value/kernel": "layers.{}.self_attn.v_proj.weight",
    "layers/query/bias": "layers.{}.self_attn.q_proj.bias",
    "layers/key/bias": "layers.{}.self_attn.k_proj.bias",
    "layers/value/bias": "layers.{}.self_attn.v_proj.bias",
    "layers/query_norm/scale": "layers.{}.self_attn.q_norm.weight",
    "layers/key_norm/scale": "layers.{}.self_attn.k_norm.weight",
    "layers/output/kernel": "layers.{}.self_attn.o_proj.weight",
    "layers/attention_post_norm/scale": "layers.{}.post_attention_layernorm.weight",
    "layers/mlp_norm/scale": "layers.{}.pre_feedforward_layernorm.weight",
    "layers/mlp_post_norm/scale": "layers.{}.post_feedforward_layernorm.weight",
    "layers/gate/kernel": "layers.{}.mlp.gate_proj.weight",
    "layers/up/kernel": "layers.{}.mlp.up_proj.weight",
    "layers/down/kernel": "layers.{}.mlp.down_proj.weight",
}
# Where blocks have two norms, not four, the second goes by the name of what it follows.
TWO_NORMS_NAMES = DECODER_NAMES | {"layers/mlp_norm/scale": "layers.{}.post_attention_layernorm.weight"}
BERT_NAMES = {
    "embed/embedding": "embeddings.word_embeddings.weight",
    "positions/embedding": "embeddings.position_embeddings.weight",
    "token_types/embedding": "embeddings.token_type_embeddings.weight",
    "embed_norm/scale": "embeddings.LayerNorm.weight",
    "embed_norm/bias": "embeddings.LayerNorm.bias",
    **{
        f"layers/{path}/{leaf}": f"encoder.layer.{{}}.{name}.{stored}"
        for name, path, weight in (
            ("attention.self.query", "query", "kernel"),
            ("attention.self.key", "key", "kernel"),
            ("attention.self.value", "value", "kernel"),
            ("attention.output.dense", "output", "kernel"),
            ("attention.output.LayerNorm", "attention_norm", "scale"),
            ("intermediate.dense", "up", "kernel"),
            ("output.dense", "down", "kernel"),
            ("output.LayerNorm", "mlp_norm", "scale"),
        )
        for stored, leaf in (("weight", weight), ("bias", "bias"))
    },
}
# Next-token scores and sentence pairs, which are not computed, and tables that old checkpoints stored though they
# follow from the config.
UNUSED_NAMES = ("lm_head.weight", "rotary_emb.inv_freq", "embeddings.position_ids")
UNUSED_PARTS = ("pooler.", "cls.")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read one by one, when asked for."""

    source: str  # for messages
    config: ModelConfig  # of the whole model
    tokenizer: Tokenizer
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the files
    read: Callable[[str, tuple[slice, ...]], np.ndarray]  # a part of a tensor, given by a slice for each axis


@cache
def tree_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameter tree of the model of `config`, by path joined with "/"."""
    keys = {"params": jax.random.key(0), "lora": jax.random.key(0)}
    variables = jax.eval_shape(build(config).init, keys, jnp.zeros((1, 1), jnp.int32))
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """For every path of the parameter tree its checkpoint name, with {} for the number of a layer."""
    if isinstance(config, BertConfig):
        names = BERT_NAMES
    else:
        names = DECODER_NAMES if VARIANTS[config.variant].post_norm else TWO_NORMS_NAMES
    return {path: names[path] for path in tree_shapes(config)}


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and stored shape of every tensor that a checkpoint of `config` must hold."""
    expected = {}
    for path, name in tensor_names(config).items():
        shape = tree_shapes(config)[path]
        if "{}" not in name:
            expected[name] = shape
            continue
        for layer in range(config.num_layers):
            # The leading axis is the layer; reversing the rest transposes a kernel and leaves a scale as it is.
            expected[name.format(layer)] = shape[:0:-1]
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
        if name not in expected and not name.endswith(UNUSED_NAMES) and not name.startswith(UNUSED_PARTS)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{checkpoint.source}: its tensors are not those that its config asks for:\n  {lines}")


def load_params(checkpoint: Checkpoint, config: ModelConfig, sharding: Sharding | Any = None) -> dict:
    """Parameter tree of the model of `config`, `config` being the checkpoint's own or a truncation of it.

    Reads only the tensors that the tree holds, and of these only the parts that this process's devices hold, each once:
    beside the parameters themselves host memory holds no more than one part of one of them.

    Args:
        checkpoint: an opened checkpoint.
        config: what to load.
        sharding: where the parameters go: one sharding for all, or a tree of shardings of the form of the parameters;
            None is the default device.

    Raises: UserError as `check_tensors` does, before anything is read.
    """
    check_tensors(checkpoint)
    if sharding is None or isinstance(sharding, Sharding):
        one = sharding or jnp.zeros(()).sharding
        shardings = dict.fromkeys(tree_shapes(config), one)
    else:
        shardings = flatten_dict(sharding, sep="/")
    dtype = jnp.dtype(config.dtype)
    flat = {}
    for path, name in tensor_names(config).items():
        shape = tree_shapes(config)[path]
        # Several devices may hold the same part.
        read_part = cache(partial(_read_part, checkpoint, name, dtype))

        def part(index: tuple[slice, ...], shape=shape, read_part=read_part) -> np.ndarray:
            return read_part(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)))

        flat[path] = jax.make_array_from_callback(shape, shardings[path], part)
    return unflatten_dict(flat, sep="/")


def load_head(checkpoint: Checkpoint, params: dict) -> jax.Array:
    """What next-token scores are made with [V, D]: a matrix of its own or, where there is none, the embedding."""
    if "lm_head.weight" not in checkpoint.shapes:
        return params["embed"]["embedding"]
    everything = (slice(None), slice(None))
    return jnp.asarray(checkpoint.read("lm_head.weight", everything), params["embed"]["embedding"].dtype)


def _read_part(checkpoint: Checkpoint, name: str, dtype: np.dtype, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The part of a parameter within `bounds` (start, stop), tensors of all layers stacked and kernels transposed."""
    index = tuple(slice(*ends) for ends in bounds)
    if "{}" not in name:
        return checkpoint.read(name, index).astype(dtype, copy=False)
    made = np.empty([stop - start for start, stop in bounds], dtype)
    for row, layer in zip(made, range(*bounds[0]), strict=True):
        row[:] = checkpoint.read(name.format(layer), index[:0:-1]).T
    return made
