"""Runs exported policies where JAX is and this package is not. Arguments: a folder of packages, then exports.

Beside an export `x` lie its `x.inputs.npz` and, if it takes prompts, `x.prompts.safetensors`; `x.outputs.npz` is
written there. Started by `python -I -S`: of the packages installed only those in the folder can be imported.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
for name in ("llmdpd_jax", "flax", "safetensors"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")

import numpy as np  # noqa: E402


def run(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    loader = importlib.import_module("load")
    assert Path(loader.__file__).parent == folder
    about, programs = loader.load()
    given = dict(np.load(f"{folder}.inputs.npz"))
    outputs = {}
    contexts = {"": None}
    if "prompt" in programs:
        text = loader.read_text(about, f"{folder}.prompts.safetensors")
        trajectory = loader.make_trajectory(about, given["observations"], given["actions"], given["rewards"])
        contexts = {
            "none": loader.make_context(about, programs),
            "text": loader.make_context(about, programs, text=text),
            "trajectory": loader.make_context(about, programs, trajectory=trajectory),
            "both": loader.make_context(about, programs, text, trajectory),
        }
        outputs |= {f"context {name}": context for name, context in contexts.items()}
    for batch in (1, 7):
        inputs = {"observation": given["observation"][:batch], "key": given["key"], "index": given["index"][:batch]}
        for name, context in contexts.items():
            if context is not None:
                inputs["context"] = np.broadcast_to(context[-1], (batch, *context.shape[1:]))
            arguments = [inputs[argument] for argument in about["programs"]["act"]["arguments"]]
            outputs[f"{batch} {name}".strip()] = programs["act"](*arguments)
    np.savez(f"{folder}.outputs.npz", **outputs)
    sys.path.remove(str(folder))
    del sys.modules["load"]


for path in sys.argv[2:]:
    run(Path(path))
