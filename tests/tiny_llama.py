"""Language models small enough for tests: a Llama as a model folder with random weights, configs of all families."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from llmdpd_jax.models.llm.bert import BertBlock, BertConfig
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.decoder import Block, DecoderConfig, Rope
from llmdpd_jax.models.llm.layers import ModelConfig
from llmdpd_jax.models.llm.network import build

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
CORPUS = ["go to the goal at (0.31, -0.42) and stay there", "run forward with a speed of 1.5 metres per second"]


def tiny_config(family: str) -> ModelConfig:
    """Of a model of three blocks with all that is peculiar to the family; "bert" or a key of VARIANTS."""
    sizes = {"vocab_size": 320, "width": 32, "num_layers": 3, "num_heads": 4, "mlp_width": 48, "max_length": 128}
    if family == "bert":
        return BertConfig(**sizes, norm_eps=1e-5)
    peculiar = {
        "olmo": {"clip_qkv": 1.0},
        "gemma3_text": {"window": 4, "local_rope": Rope(100.0), "local_layers": (True, True, False)},
    }
    return DecoderConfig(
        **sizes,
        variant=family,
        norm_eps=1e-5,
        num_kv_heads=2,
        head_dim=16,
        rope=Rope(50000.0),
        attention_scale=0.25,
        **peculiar.get(family, {}),
    )


def hf_config(config: ModelConfig) -> dict:
    """config.json of a model whose config is that of `tiny_config`."""
    if isinstance(config, BertConfig):
        kind, activation = "bert", {"hidden_act": "gelu", "layer_norm_eps": config.norm_eps}
    else:
        kind, activation = config.variant, {"rms_norm_eps": config.norm_eps}
    sizes = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_length,
        **activation,
    }
    if kind == "bert":
        return sizes
    sizes |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope.theta,
    }
    if config.clip_qkv is not None:
        sizes["clip_qkv"] = config.clip_qkv
    if config.window:
        kinds = {True: "sliding_attention", False: "full_attention"}
        sizes |= {
            "query_pre_attn_scalar": round(config.attention_scale**-2),
            "sliding_window": config.window,
            "layer_types": [kinds[local] for local in config.local_layers],
            "rope_local_base_freq": config.local_rope.theta,
        }
    return sizes


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face names; large enough that attention is not uniform."""
    rng, c = np.random.default_rng(seed), CONFIG
    d, kv, m = c["hidden_size"], c["hidden_size"] // 2, c["intermediate_size"]

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.4, shape).astype(np.float32)

    def scale() -> np.ndarray:
        return rng.uniform(0.5, 1.5, d).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(c["vocab_size"], d), "model.norm.weight": scale()}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm": scale(),
            "self_attn.q_proj": matrix(d, d),
            "self_attn.k_proj": matrix(kv, d),
            "self_attn.v_proj": matrix(kv, d),
            "self_attn.o_proj": matrix(d, d),
            "post_attention_layernorm": scale(),
            "mlp.gate_proj": matrix(m, d),
            "mlp.up_proj": matrix(m, d),
            "mlp.down_proj": matrix(d, m),
        }
        tensors |= {f"model.layers.{i}.{name}.weight": array for name, array in layer.items()}
    return tensors


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=CONFIG["vocab_size"], initial_alphabet=alphabet)
    )
    return tokenizer


def tiny_word_pieces(lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer as BERT models come with it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["Go to the goal, going (quickly) [now], nAive cafe 1234."] * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_folder(
    folder: Path, tensors: dict[str, np.ndarray], config: dict = CONFIG, shards: int = 1, tokenizer=None
) -> Path:
    """Writes a model folder, with an index file if there is more than one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tokenizer or tiny_tokenizer()).save(str(folder / "tokenizer.json"))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[k::shards]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[k::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def block_outputs(checkpoint, tokens, mask=None) -> np.ndarray:
    """States after every block [layers, B, L, D], from one run of the whole model."""

    @jax.jit
    def run(params):
        return build(checkpoint.config).apply(
            {"params": params},
            tokens,
            mask,
            capture_intermediates=lambda part, _: isinstance(part, (Block, BertBlock)),
            mutable=["intermediates"],
        )

    with jax.default_matmul_precision("highest"):
        _, state = run(load_params(checkpoint, checkpoint.config))
    return np.asarray(state["intermediates"]["layers"]["__call__"][0][0])
