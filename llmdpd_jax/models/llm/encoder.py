"""A frozen LLM as text encoder: descriptions in, hidden states per token and the numeric channel out.

A causal LLM reads left to right, so its states at a word know nothing of what follows. By default the description is
therefore fed twice and the states of the second copy are used, each of which has seen the whole text ("echo
embeddings", Springer et al. 2024, arXiv 2402.15449). Models of the BERT family read both ways and are fed once.
"""

import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.bert import BertConfig
from llmdpd_jax.models.llm.checkpoint import Checkpoint, load_head, load_params, tree_shapes
from llmdpd_jax.models.llm.generation import generate
from llmdpd_jax.models.llm.gguf import open_gguf
from llmdpd_jax.models.llm.layers import ModelConfig
from llmdpd_jax.models.llm.network import hidden_states, random_params
from llmdpd_jax.models.llm.safetensors import find_folder, open_safetensors
from llmdpd_jax.models.llm.tuning import tuned_config, tuning_hash
from llmdpd_jax.models.llm.weights import SOURCES, content_hash, fetch_weights, weights_sha256
from llmdpd_jax.prompts.text import (
    Reading,
    TokenStates,
    check_texts,
    make_text_prompts,
    pad_and_stack,
    read_description,
)
from llmdpd_jax.types import LLMInput, TextPrompt

# Part of every encoder's identity: raise it when the same weights and settings come to give other prompts, so that
# cached embeddings of before are not taken for those of now.
ENCODING_VERSION = 5
CPU_BATCH = 512  # tokens; on CPUs more gains nothing, and costs memory
ACCELERATOR_BATCH = 16384  # tokens, if they fit; enough to keep one busy with a small model
SEPARATOR = "\n"
CUE = "\nIn other words, the robot has to"  # what the LLM is to go on from
GENERATION_BATCH = 16  # descriptions that are continued at once


@dataclass(frozen=True)
class TextEncoderSettings:
    """What a text encoder is made of. Same settings and same weights give the same embeddings."""

    source: str = "smollm2"  # a name in SOURCES, a .gguf file, a model folder, or a hub id ("owner/name")
    layer: int = 10  # block whose output is used, 1 = first; less is computed and loaded the lower it is
    repeat: bool = True  # feed the description twice, use the second copy; BERTs see all of it anyway and ignore this
    hide_numbers: bool = True  # the LLM reads a placeholder for each number; the values are in the numeric channel only
    units: bool = True  # numbers with a unit that `prompts.units` knows are read in metres, m/s and radians
    continuation: int = 0  # tokens that the LLM goes on to say of a description; their states are read with its own
    dtype: str = "float32"  # or "bfloat16": half the memory, no faster on CPUs
    random_seed: int | None = None  # ablation: random weights from this seed instead of the trained ones

    def __post_init__(self):
        if not isinstance(self.source, str) or not self.source:
            raise UserError(f"text encoder source: expected a name or path, got {self.source!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"text encoder dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")
        if not isinstance(self.layer, int) or self.layer < 1:
            raise UserError(f"text encoder layer: expected a whole number from 1, got {self.layer!r}")
        if not isinstance(self.continuation, int) or self.continuation < 0:
            raise UserError(f"text encoder continuation: expected a number of tokens, got {self.continuation!r}")


def encoder_settings(config) -> TextEncoderSettings:
    """The settings in the `text` section of a config."""
    return TextEncoderSettings(
        source=config.source,
        layer=config.layer,
        repeat=config.repeat,
        hide_numbers=config.hide_numbers,
        units=config.units,
        continuation=config.continuation,
        random_seed=0 if config.random_init else None,
    )


def load_text_encoder(settings: TextEncoderSettings) -> "TextEncoder":
    """A text encoder with its weights loaded; `TextEncoder(settings)` is the same, loading at its first use."""
    encoder = TextEncoder(settings)
    encoder.params  # noqa: B018 (loads)
    return encoder


@dataclass(frozen=True)
class TextEncoder:
    """Encodes descriptions, on all devices of this host. Nothing is read from disk until needed, and then once."""

    settings: TextEncoderSettings
    batch_tokens: int | None = None  # that a device reads at once; None: chosen by kind and memory of the device
    tuning: dict | None = None  # adapters and soft tokens that were trained with a policy (`models.llm.tuning`)
    shard: bool | None = None  # weights divided among the devices, or a copy on each; None: chosen by their memory

    def __post_init__(self):
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"text encoder batch_tokens: expected a whole number from 1, got {self.batch_tokens}")

    @property
    def name(self) -> str:
        """The source, as it was given."""
        return self.settings.source

    @cached_property
    def identity(self) -> dict:
        """What the embeddings depend on, as plain JSON values; found without loading the weights.

        Raises: UserError if the source is a path that is not there.
        """
        s = self.settings
        return {
            "weights_sha256": _weights_hash(s.source),
            "layer": s.layer,
            "repeat": s.repeat,
            "hide_numbers": s.hide_numbers,
            "units": s.units,
            "continuation": s.continuation,
            "dtype": s.dtype,
            "random_seed": s.random_seed,
            "version": ENCODING_VERSION,
        } | ({"tuning": tuning_hash(self.tuning)} if self.tuning else {})

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return self.config.width

    @property
    def depth(self) -> int:
        """Blocks of the whole model."""
        return self._checkpoint.config.num_layers

    @cached_property
    def config(self) -> ModelConfig:
        """Of the model cut at the layer of the settings. Raises UserError if it has no such layer."""
        return replace(self._checkpoint.config.truncate(self.settings.layer), dtype=self.settings.dtype)

    @property
    def _reads_both_ways(self) -> bool:
        return isinstance(self.config, BertConfig)

    @cached_property
    def is_divided(self) -> bool:
        """Whether the weights are divided among this host's devices, rather than copied to each."""
        if self.shard is not None or self._mesh.size == 1:
            return bool(self.shard)
        size = sum(map(math.prod, tree_shapes(self.config).values())) * jnp.dtype(self.config.dtype).itemsize
        return _too_large_for_copies(size, self._mesh.devices.flat[0])

    @cached_property
    def params(self) -> dict:
        """The weights: divided among this host's devices, or a copy on each."""
        shapes = tree_shapes(self.config)
        axes = {path: _divided(shape, self._mesh.size) if self.is_divided else () for path, shape in shapes.items()}
        shardings = {path: NamedSharding(self._mesh, PartitionSpec(*names)) for path, names in axes.items()}
        shardings = unflatten_dict(shardings, sep="/")
        if self.settings.random_seed is not None:
            return jax.device_put(random_params(self.config, jax.random.key(self.settings.random_seed)), shardings)
        return load_params(self._checkpoint, self.config, shardings)

    @property
    def replicated(self) -> NamedSharding:
        """A copy on each device that the weights are on, for what they are used with."""
        return NamedSharding(self._mesh, PartitionSpec())

    @cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.local_devices()), ("data",))

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return _open(self.settings.source)

    def encode(self, texts: Sequence[str]) -> TextPrompt:
        """Encodes B descriptions into a TextPrompt of NumPy arrays [B, L, ...], L being the length of the longest.

        States are raw: their scale differs much between dimensions and models, so standardise before use.
        Raises: UserError for texts that are not non-empty strings, or longer than the model's context.
        """
        readings = [self.read(text) for text in check_texts(texts)]
        distinct = list(dict.fromkeys(reading.text for reading in readings))
        tokens = {distinct[i]: states for i, states in self.encode_each(distinct)}
        return pad_and_stack(make_text_prompts(readings, tokens))

    def read(self, description: str) -> Reading:
        """What the LLM is given of a description."""
        return read_description(description, self.settings.hide_numbers, self.settings.units)

    def encode_each(self, texts: Sequence[str]) -> Iterator[tuple[int, TokenStates]]:
        """Yields (position in texts, states of the text's tokens) batch by batch, the longest texts first.

        The texts are those of `read`.
        """
        rows = NamedSharding(self._mesh, PartitionSpec("data"))
        for batch in self.batches(texts):
            states = np.asarray(self._hidden_states(*jax.device_put((batch.tokens, batch.mask, batch.kept), rows)))
            if not np.isfinite(states).all():
                raise UserError(f"text encoder source {self.settings.source!r}: its weights give states that are NaN")
            for share, packed in zip(batch.shares, states, strict=True):
                for i, item in share.items():
                    yield i, TokenStates(packed[item.places], item.offsets)
                    packed = packed[len(item.tokens) :]

    def _hidden_states(self, tokens: jax.Array, mask: jax.Array, kept: jax.Array) -> jax.Array:
        """States [G, N, D] of the places `kept` of a batch."""
        # Padding on the right is nothing to a decoder, and to see no mask is the least work.
        mask = mask if self._reads_both_ways else None
        if not self.tuning:
            return hidden_states(self.config, self.params, tokens, mask, kept=kept)
        tuning = jax.device_put(self.tuning, self.replicated)
        return hidden_states(tuned_config(self.config, tuning), self.params, tokens, mask, **tuning, kept=kept)

    def batches(self, texts: Sequence[str]) -> Iterator["Batch"]:
        """The batches that `encode_each` feeds the LLM with, which are divided among the devices.

        Texts of like length go together, the longest first, and last those that fill what is left of the tokens that a
        device reads at once. Lengths, numbers of rows and numbers of tokens are rounded up to a few values: little is
        computed in vain, and few shapes are compiled.
        """
        devices = self._mesh.devices.ravel()
        inputs = self._inputs(texts)
        left = sorted(range(len(inputs)), key=lambda i: len(inputs[i].tokens))
        total = sum(len(one.tokens) for one in inputs)
        while left:
            longest = len(inputs[left[-1]].tokens)
            length = _padded_length(longest, self.config.max_length)
            budget = self.batch_tokens or _batch_tokens(self.config, length, devices[0])
            # So much for each, and the devices together can take in all: few texts are divided among them, too.
            budget = min(budget, longest + total // len(devices))
            rows = budget // length + 2  # two more than fit in full length, as not all are so long
            shares = [{i: inputs[i] for i in _take_share(left, inputs, budget, rows)} for _ in devices]
            rows = min(rows, _power_of_two(2 * max(map(len, shares)) - 1))
            padded = [_pad(share.values(), rows, length) for share in shares]
            tokens, mask = (np.concatenate(parts) for parts in zip(*padded, strict=True))
            total -= int(mask.sum())
            yield Batch(shares, tokens, mask, _places(mask.reshape(len(devices), -1)))

    def llm_inputs(self, texts: Sequence[str]) -> LLMInput:
        """What the LLM is given of U texts (of `read`), as NumPy arrays [U, ...] padded on the right."""
        inputs = self._inputs(texts)
        tokens, mask = _pad(inputs, len(inputs), max(len(one.tokens) for one in inputs))
        places = np.zeros((len(inputs), max(len(one.places) for one in inputs)), np.int32)
        for row, one in zip(places, inputs, strict=True):
            row[: len(one.places)] = one.places
        return LLMInput(tokens, mask, places)

    def _inputs(self, texts: Sequence[str]) -> list["Input"]:
        inputs = [self._tokenize(text) for text in texts]
        return self._go_on(inputs) if self.settings.continuation else inputs

    def _go_on(self, inputs: list["Input"]) -> list["Input"]:
        """The inputs with what the whole LLM, none of it cut off, most likely says next, up to the end of its turn."""
        whole = replace(self._checkpoint.config, dtype=self.settings.dtype)
        if isinstance(whole, BertConfig):
            raise UserError(f"text.continuation: {self.settings.source!r} is a BERT and cannot generate; set it to 0")
        count, tokenizer = self.settings.continuation, self._checkpoint.tokenizer
        cue = tokenizer.encode(CUE, add_special_tokens=False).ids
        longest = max(len(one.tokens) for one in inputs) + len(cue) + count
        if longest > whole.max_length:
            raise UserError(
                f"text.continuation: {count} tokens more would make {longest}, the model reads at most "
                f"{whole.max_length}"
            )
        if self.settings.random_seed is None:
            params = load_params(self._checkpoint, whole)
            head = load_head(self._checkpoint, params)
        else:
            params = random_params(whole, jax.random.key(self.settings.random_seed))
            head = params["embed"]["embedding"]
        stops = [token for token, word in tokenizer.get_added_tokens_decoder().items() if word.special]

        longer = []
        for first in range(0, len(inputs), GENERATION_BATCH):
            some = [replace(one, tokens=one.tokens + cue) for one in inputs[first : first + GENERATION_BATCH]]
            length = _padded_length(max(len(one.tokens) for one in some), whole.max_length - count)
            tokens, mask = _pad(some, GENERATION_BATCH, length, left=True)
            said = np.asarray(generate(whole, params, head, tokens, mask, count))
            for one, words in zip(some, said, strict=False):
                stopped = np.flatnonzero(np.isin(words, stops))
                words = words[: stopped[0]] if stopped.size else words
                places = [*one.places, *range(len(one.tokens), len(one.tokens) + len(words))]
                none = np.zeros((len(words), 2), np.int32)  # they cover none of the description's characters
                offsets = np.concatenate([one.offsets, none])
                longer.append(Input([*one.tokens, *words.tolist()], places, offsets))
        return longer

    def _tokenize(self, text: str) -> "Input":
        """Token ids of the prefix and the text, and which of them are the text's.

        What precedes the text is its first copy and a separator, or the separator alone: a causal LLM piles a huge
        activation onto the first token of a sequence (norm 100 times that of the others in deep layers of SmolLM2),
        which must not be one of the description's. Before a BERT's text nothing is needed. Tokens that the tokenizer
        puts around it ([CLS], [SEP], <bos>) are fed, but are not the text's own.
        """
        repeat = self.settings.repeat and not self._reads_both_ways
        prefix = "" if self._reads_both_ways else text + SEPARATOR if repeat else SEPARATOR
        encoding = self._checkpoint.tokenizer.encode(prefix + text)
        if len(encoding.ids) > self.config.max_length:
            raise UserError(
                f"description {text[:60]!r}...: {len(encoding.ids)} tokens{' (read twice)' * repeat}, "
                f"the model reads at most {self.config.max_length}"
            )
        own = [
            (place, (max(start - len(prefix), 0), end - len(prefix)))
            for place, (start, end) in enumerate(encoding.offsets)
            if end > len(prefix)
        ]
        if not own:
            raise UserError(f"description {text[:60]!r}: the model's tokenizer finds nothing to read in it")
        places, offsets = zip(*own, strict=True)
        return Input(encoding.ids, list(places), np.array(offsets, np.int32))


@dataclass(frozen=True)
class Input:
    """A text as the LLM is fed with it."""

    tokens: list[int]  # prefix and text
    places: list[int]  # of the text's own tokens among them
    offsets: np.ndarray  # [L, 2], characters of the text that each of its own tokens covers


@dataclass(frozen=True)
class Batch:
    """Texts that the LLM is fed with at once: rows [B, L], of which the G devices have B/G each."""

    shares: list[dict[int, Input]]  # G times the texts of a device, by their positions among all texts
    tokens: np.ndarray  # [B, L] int32, padded on the right; a device's rows beyond its texts are padding too
    mask: np.ndarray  # [B, L] bool, True at real tokens
    kept: np.ndarray  # [G, N] int32, places of the real tokens among each device's B/G * L; then any


def _take_share(left: list[int], inputs: Sequence[Input], budget: int, rows: int) -> list[int]:
    """Takes from `left`, which go from short to long, at most `rows` texts of at most `budget` tokens together.

    The longest of all in any case, then one by one the longest that still fits.
    """
    share = []
    while left and len(share) < rows:
        fitting = bisect(left, budget, key=lambda i: len(inputs[i].tokens)) if share else len(left)
        if not fitting:
            break
        share.append(left.pop(fitting - 1))
        budget -= len(inputs[share[-1]].tokens)
    return share


def _places(mask: np.ndarray) -> np.ndarray:
    """Places [G, N] where the rows of a mask [G, M] are True, then 0; N is rounded up as lengths are."""
    places = np.zeros((len(mask), _padded_length(int(mask.sum(1).max()), mask.shape[1])), np.int32)
    for row, real in zip(places, mask, strict=True):
        row[: real.sum()] = np.flatnonzero(real)
    return places


def _pad(inputs: Iterable[Input], rows: int, length: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [rows, length], padded on the right or the left, and the mask that is True at real ones."""
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for row, real, one in zip(tokens, mask, inputs, strict=False):
        place = slice(length - len(one.tokens), None) if left else slice(len(one.tokens))
        row[place], real[place] = one.tokens, True
    return tokens, mask


def _padded_length(length: int, most: int) -> int:
    """The next of 16, 24, 32, ..., 128, 144, ..., 256, 288, ...: steps of 8, for long texts an eighth; or `most`."""
    step = max(8, _power_of_two(length - 1) // 8) if length > 16 else 16
    return min(-(-length // step) * step, most)


def _power_of_two(n: int) -> int:
    """The largest that is at most n."""
    return 1 << (n.bit_length() - 1)


def _batch_tokens(config: ModelConfig, length: int, device: jax.Device) -> int:
    """How many tokens of sequences of `length` one device is given at once; the weights are on it already."""
    if device.platform == "cpu":
        return CPU_BATCH
    memory = device.memory_stats()  # not every backend tells
    if not memory or "bytes_limit" not in memory:
        return ACCELERATOR_BATCH
    # What a block holds of a token at its widest: the residual stream, queries, keys and values (packed and padded),
    # the MLP, scores.
    floats = 9 * config.width + 3 * config.mlp_width + 2 * config.num_heads * length
    free = memory["bytes_limit"] - memory["bytes_in_use"]
    return max(1, min(ACCELERATOR_BATCH, free // 2 // (4 * floats)))


def _too_large_for_copies(size: int, device: jax.Device) -> bool:
    """Whether weights of `size` bytes would take more than a quarter of the device's memory, where it tells that."""
    memory = device.memory_stats() or {}
    return "bytes_limit" in memory and size > memory["bytes_limit"] / 4


def _divided(shape: tuple[int, ...], devices: int) -> list[str | None]:
    """Which axis is divided: the larger of a matrix's two that can be; the axis of layers, which are scanned, never."""
    axes = [axis for axis in range(max(len(shape) - 2, 0), len(shape)) if shape[axis] % devices == 0]
    longest = max(axes, key=lambda axis: shape[axis], default=None)
    return ["data" if axis == longest else None for axis in range(len(shape))]


def _open(source: str) -> Checkpoint:
    if source in SOURCES:
        source = str(fetch_weights(source))
    if source.endswith(".gguf"):
        return open_gguf(Path(source).expanduser())
    return open_safetensors(find_folder(source))


def _weights_hash(source: str) -> str:
    """SHA-256 of the files an encoder is made from."""
    if source in SOURCES:
        return weights_sha256(source)
    if source.endswith(".gguf"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: no such GGUF file")
        return content_hash([path])
    folder = find_folder(source)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors and no config.json, so this is not a model folder")
    return content_hash(files)
