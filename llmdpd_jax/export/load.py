"""Loads and runs a policy that `llmdpd export` wrote. Needs jax and flatbuffers; not llmdpd_jax.

    about, programs = load("exports/x")
    key = jax.random.key_data(jax.random.key(0))
    action = programs["act"](observation, key)  # [batch, O] -> [batch, A], in the environment's units

policy.json lists what each program takes. Of several contexts an index chooses, int32 [batch]. A policy that was told
nothing at its export takes a context, which comes of prompts:

    text = read_text(about, "prompts.safetensors")  # of `llmdpd embed --file=... --out=prompts.safetensors`
    context = make_context(about, programs, text=text)  # [batch, 3, C]
    action = programs["act"](observation, key, context)
"""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np

TYPES = {"F32": np.float32, "I32": np.int32, "BOOL": np.bool_}  # of safetensors


def load(folder=Path(__file__).parent):
    """What policy.json says, and the programs by name; each is compiled at its first call with a batch size."""
    folder = Path(folder)
    about = json.loads((folder / "policy.json").read_text())
    files = {name: (folder / f"{name}.exported").read_bytes() for name in about["programs"]}
    return about, {name: jax.jit(jax.export.deserialize(bytearray(data)).call) for name, data in files.items()}


def read_text(about, path):
    """Text prompts [B, L, ...] of a file by `llmdpd embed --out`. ValueError: read by another LLM than the policy's."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    if json.loads(header.pop("__metadata__")["text_encoder"]) != about["text_encoder"]:
        raise ValueError(f"{path}: was not read by the LLM of this policy, at its layer: {about['text_encoder']}")
    arrays = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[first:last], TYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def make_trajectory(about, observations, actions, rewards):
    """A trajectory prompt [1, T, ...] of observations [T + 1, O], actions [T, A] and rewards [T], cut or padded."""
    length = about["programs"]["prompt"]["arguments"]["trajectory"]["mask"]["shape"][1]
    observations = np.asarray(observations)
    given = {"observations": observations[:-1], "actions": actions, "rewards": rewards}
    given |= {"next_observations": observations[1:], "mask": np.ones(len(rewards), bool)}
    prompt = make_zeros(about["programs"]["prompt"]["arguments"]["trajectory"], 1)
    for name, array in given.items():
        prompt[name][0, : len(array)] = array[:length]
    return prompt


def make_context(about, programs, text=None, trajectory=None):
    """The context [B, 3, C] of either prompt, of both (B of each, or one of either), or of none ([1, 3, C])."""
    batch = max((len(prompt["mask"]) for prompt in (text, trajectory) if prompt is not None), default=1)
    arguments = about["programs"]["prompt"]["arguments"]
    flags = [np.full(batch, prompt is not None) for prompt in (text, trajectory)]
    text = make_zeros(arguments["text"], batch) if text is None else text
    trajectory = make_zeros(arguments["trajectory"], batch) if trajectory is None else trajectory
    given = ({n: np.broadcast_to(a, (batch, *a.shape[1:])) for n, a in prompt.items()} for prompt in (text, trajectory))
    return programs["prompt"](*given, *flags)


def make_zeros(arguments, batch):
    """What stands for an absent prompt: a batch of arrays of zeros, of one token where their length is free."""
    sizes = {"batch": batch, "tokens": 1}
    return {n: np.zeros([sizes.get(s, s) for s in a["shape"]], a["dtype"]) for n, a in arguments.items()}


if __name__ == "__main__":
    about, programs = load()
    inputs = {"observation": np.zeros((1, about["observation_size"]), np.float32)}
    inputs |= {"key": jax.random.key_data(jax.random.key(0)), "index": np.zeros(1, np.int32)}
    if "prompt" in programs:
        inputs["context"] = make_context(about, programs)
    print(programs["act"](*(inputs[name] for name in about["programs"]["act"]["arguments"])))
