"""How fast the text encoder reads descriptions, beside `transformers` on torch.

The same texts in batches of as many tokens, on the same number of threads, in float32. Both sides go from token ids to
the states of every token in host memory; the Flax side finds the ids as well. Each has the batches that suit it best:
the torch side's hold texts of like length and are padded to the longest of them and no further, since nothing has to be
compiled for it.
"""

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from llmdpd_jax.bench.machine import device_name
from llmdpd_jax.bench.peak import flops_per_second, jax_matmul, matmul_size
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings
from llmdpd_jax.models.llm.safetensors import find_folder
from llmdpd_jax.models.llm.weights import SOURCES, fetch_weights
from llmdpd_jax.tasks.family import get_family

FAMILY = "point_robot"  # whose descriptions are read
TOLERANCE = 1e-3  # relative difference of states above which the sides do not compute the same
INSTALL_TORCH = 'install a CPU build of torch (README, "Tests"), then `pip install -e ".[parity]"`'


class FlaxText:
    """The text encoder; `layer` None: the whole model."""

    def __init__(self, source: str, layer: int | None, texts: Sequence[str]):
        depth = TextEncoder(TextEncoderSettings(source, layer=1)).depth
        self.encoder = TextEncoder(TextEncoderSettings(source, layer=layer or depth))
        self.texts = texts

    def facts(self) -> dict:
        """Token ids of the texts and the places of their own tokens, sizes of batches, FLOPs, and the device."""
        batches = list(self.encoder.batches(self.texts))
        inputs = [item for _, item in sorted(pair for b in batches for share in b.shares for pair in share.items())]
        device = jax.devices()[0]
        return {
            "tokens": [item.tokens for item in inputs],
            "places": [item.places for item in inputs],
            "batch_tokens": max(batch.kept.size for batch in batches),
            "flops": matmul_flops(self.encoder.params, sum(len(item.tokens) for item in inputs)),
            "platform": device.platform,
            "device": device_name(device),
        }

    def run(self) -> None:
        """Reads all texts."""
        for _ in self.encoder.encode_each(self.texts):
            pass

    def result(self, layer: None) -> np.ndarray:
        """States [N, D] of all texts' own tokens."""
        found = dict(self.encoder.encode_each(self.texts))
        return np.concatenate([found[i].states for i in range(len(self.texts))])

    def matmul(self) -> float:
        """FLOP/s of one large matrix product."""
        return jax_matmul()


class TorchText:
    """`transformers`' own model, whole or cut to its first blocks."""

    def __init__(
        self, source: str, cut: int | None, tokens: list, places: list, batch_tokens: int, threads: int, device: str
    ):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.places, self.device = torch, places, device
        self.model = _torch_model(source).to(device).eval()
        if cut is not None and cut < self.model.config.num_hidden_layers:
            self.model.layers = self.model.layers[:cut]
            self.model.norm = torch.nn.Identity()
        self.batches = []
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]), reverse=True)
        while order:
            longest = len(tokens[order[0]])
            size = max(1, batch_tokens // longest)
            members, order = order[:size], order[size:]
            ids = torch.zeros((len(members), longest), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, real, i in zip(ids, mask, members, strict=True):
                row[: len(tokens[i])], real[: len(tokens[i])] = torch.tensor(tokens[i]), 1
            self.batches.append((members, ids.to(device), mask.to(device)))

    def facts(self) -> dict:
        """None."""
        return {}

    def run(self) -> None:
        """Reads all texts."""
        with self.torch.inference_mode():
            for _, ids, mask in self.batches:
                self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.cpu().numpy()

    def result(self, layer: int | None) -> np.ndarray:
        """States [N, D] of all texts' own tokens after a block, by default those that a run gives."""
        found = {}
        with self.torch.inference_mode():
            for members, ids, mask in self.batches:
                out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
                states = out.last_hidden_state if layer is None else out.hidden_states[layer]
                found |= {i: row[self.places[i]] for i, row in zip(members, states.cpu().numpy(), strict=True)}
        return np.concatenate([found[i] for i in range(len(found))])

    def matmul(self) -> float:
        """FLOP/s of one large matrix product."""
        size = matmul_size(self.device)
        matrix = self.torch.ones((size, size), device=self.device)
        return flops_per_second(lambda: (matrix @ matrix)[0, 0].item(), size)


def _torch_model(source: str):
    """The model in float32, with attention fused into one call."""
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options = {"dtype": "float32", "attn_implementation": "sdpa"}
    if source.endswith(".gguf"):
        file = Path(source).expanduser()
        return AutoModel.from_pretrained(file.parent, gguf_file=file.name, **options)
    return AutoModel.from_pretrained(find_folder(source), **options)


def matmul_flops(params: dict, tokens: int) -> float:
    """FLOPs of multiplying tokens with all weight matrices: what any implementation has to do, without attention."""
    kernels = [leaf.size for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"]
    return 2.0 * tokens * sum(kernels)


def bench_texts(source: str, count: int) -> list[str]:
    """`count` distinct texts as the LLM reads them, spread over all wordings of a task family."""
    family, encoder = get_family(FAMILY), TextEncoder(TextEncoderSettings(source))
    written = (
        d
        for task in family.tasks()
        for held_out in (False, True)
        for d in family.descriptions(task.parameters, held_out=held_out)
    )
    texts = list(dict.fromkeys(encoder.read(description).text for description in written))
    return [texts[i * len(texts) // count] for i in range(count)]


def run(
    source: str, cpus: Sequence[int], repeats: int, layer: int = TextEncoderSettings.layer, count: int = 64
) -> Report:
    """Prompts a second and peak memory of the whole model and of the model cut at `layer`.

    The cut model is compared with the whole one of `transformers`, which runs all blocks whichever one's states are
    asked for, and with one whose later blocks were taken away by hand ("transformers cut").

    Args:
      source: as `TextEncoderSettings.source`.
      layer: where to cut; of a model with fewer blocks it is the last.

    Raises: UserError if a side fails, or the two do not compute the same.
    """
    source = str(fetch_weights(source)) if source in SOURCES else source  # torch knows none of the names
    layer = min(layer, TextEncoder(TextEncoderSettings(source, layer=1)).depth)
    given = {"source": source, "texts": bench_texts(source, count)}
    with ExitStack() as stack:

        def start(name: str, side: type, **arguments: Any) -> Worker:
            return stack.enter_context(Worker(name, side, arguments, cpus))

        workers = {
            "whole": start("Flax, whole", FlaxText, **given, layer=None),
            "cut": start(f"Flax, layer {layer}", FlaxText, **given, layer=layer),
        }
        facts = {name: worker.ask(do="facts") for name, worker in workers.items()}
        platform = facts["whole"]["platform"]
        lacking = lacking_reference(source, platform)
        if not lacking:
            given = {"source": source, "threads": len(cpus), "device": "cpu" if platform == "cpu" else "cuda"}
            given |= {name: facts["whole"][name] for name in ("tokens", "places", "batch_tokens")}
            workers["torch whole"] = start("transformers", TorchText, **given, cut=None)
            workers["torch cut"] = start("transformers cut", TorchText, **given, cut=layer)
            check_same(workers["whole"], workers["torch whole"])
            check_same(workers["cut"], workers["torch cut"])
            check_same(workers["cut"], workers["torch whole"], layer)
        seconds, peak = take_turns(workers, repeats)
        memory = {name: worker.ask(do="memory") for name, worker in workers.items()}

    shared = {"threads": len(cpus), "device": facts["whole"]["device"]}
    rows = []
    for side, others in {"whole": ["torch whole"], "cut": ["torch whole", "torch cut"]}.items():
        name = "text/whole" if side == "whole" else f"text/layer {layer}"
        fraction = facts[side]["flops"] / seconds[side] / peak
        for other in others if not lacking else [None]:
            named = shared | {"reference": workers[other].name if other else None}
            rate = {"value": count / seconds[side], "reference_value": count / seconds[other] if other else None}
            rows.append(Row(name, unit="prompts/s", peak_fraction=fraction, **rate, **named))
            held = {"value": memory[side] / 1e6, "reference_value": memory[other] / 1e6 if other else None}
            rows.append(Row(f"{name}, memory", unit="MB", **held, **named))
    rows.sort(key=lambda row: row.unit, reverse=True)
    return Report(tuple(rows), (lacking,) if lacking else ())


def lacking_reference(source: str, platform: str) -> str:
    """Why there is nothing to compare with, and what to do about it; empty if there is."""
    needed = ["torch", "accelerate"] if source.endswith(".gguf") else ["torch"]
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    if absent:
        return f"no reference: {' and '.join(absent)} not installed; {INSTALL_TORCH}"
    if platform == "cpu":
        return ""
    import torch

    if platform == "gpu" and torch.cuda.is_available():
        return ""
    return f"no reference: JAX uses a {platform} and torch cannot; JAX_PLATFORMS=cpu compares both on the CPU"


def check_same(flax: Worker, torch: Worker, layer: int | None = None) -> None:
    """Raises UserError if the states of two sides differ by more than rounding: their times would compare nothing."""
    ours, theirs = flax.result(), torch.result(layer)
    same_shape = ours.shape == theirs.shape
    difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) if same_shape else np.inf
    if not difference <= TOLERANCE:
        raise UserError(
            f"{flax.name} and {torch.name} do not compute the same: shapes {ours.shape} and {theirs.shape}, relative "
            f"difference {difference:.1e}"
        )
