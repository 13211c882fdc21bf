"""The folder that `llmdpd export` writes: a policy that acts with JAX alone.

exports/x/act.exported     observations -> actions
          prompt.exported  prompts -> context; only if none was given at the export
          policy.json      what the programs take and give, and where they come from
          load.py          loads and runs them
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from llmdpd_jax import __version__
from llmdpd_jax.config import to_json
from llmdpd_jax.diffusion.guidance import Guidance, check_guidance
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import write_atomically
from llmdpd_jax.export.programs import (
    Program,
    act_program,
    export_program,
    pack_context,
    prompt_program,
)
from llmdpd_jax.export.weights import flat_arrays
from llmdpd_jax.models.llm.encoder import TextEncoderSettings, encoder_settings
from llmdpd_jax.policy import Policy
from llmdpd_jax.prompts.text import check_texts
from llmdpd_jax.prompts.trajectory import read_trajectory

PLATFORMS = ("cpu", "cuda", "tpu")
ABOUT_FILE = "policy.json"
LOADER = Path(__file__).with_name("load.py")
FORMAT = "llmdpd export 1"


def export_policy(
    policy: Policy,
    out: Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    texts: Sequence[str] | None = None,
    trajectories: Sequence[Path] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    best_of: int | None = None,
    temperature: float | None = None,
    guidance: Guidance | None = None,
) -> dict[str, Any]:
    """Writes a policy as programs that need JAX and not this package.

    Told nothing here, it takes prompts when it is used: a program for them is written too.

    Args:
      out: folder to write; an earlier export there is replaced.
      platforms: of PLATFORMS, those it can run on.
      texts: N descriptions that it is told of for good.
      trajectories: N .npz files with a trajectory each, as for `Policy.prompt`; with texts as many, or one of either.
      sampler, steps, best_of, temperature: as for `Policy.act`.
      guidance: weights of the prompts and the critic, as they are to stay; None takes the config's.

    Returns:
      What policy.json says.

    Raises:
      UserError: an unknown platform, a folder of other things, prompts or options that do not fit the policy; before
        the LLM runs and before anything is written.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown:
        raise UserError(f"platforms: {unknown[0]!r} is unknown; choose from {', '.join(PLATFORMS)}")
    _check_folder(out)
    settings = policy.config.evaluation
    if guidance is None:
        guidance = Guidance(settings.text_guidance, settings.trajectory_guidance, settings.critic_guidance or None)
    check_guidance(guidance)
    options = {
        "sampler": sampler or settings.sampler,
        "steps": settings.steps if steps is None else steps,
        "best_of": settings.best_of if best_of is None else best_of,
        "temperature": settings.temperature if temperature is None else temperature,
    }
    if options["best_of"] < 1:
        raise UserError(f"export: the best of {options['best_of']} actions; at least 1 is needed")
    weighed = options | {"guidance": None if guidance == Guidance() else guidance}
    trial = act_program(policy, None, **weighed)
    jax.eval_shape(trial.function, *trial.arguments.values())  # refuses what does not fit, before the LLM runs

    live = texts is None and trajectories is None
    if live:
        _check_embeddable(policy)
        told, contexts = None, None
    else:
        texts = None if texts is None else check_texts(texts)
        shown = None if trajectories is None else [read_trajectory(path) for path in trajectories]
        contexts = pack_context(policy.prompt(texts, shown))
        told = _told(texts, trajectories, len(contexts))
    programs = {"act": act_program(policy, contexts, **weighed)} | ({"prompt": prompt_program(policy)} if live else {})
    exported = {name: export_program(program, platforms) for name, program in programs.items()}
    about = {
        "format": FORMAT,
        "programs": {name: _describe(programs[name], exported[name]) for name in programs},
        "platforms": list(platforms),
        "contexts": told,
        **options,
        "guidance": vars(guidance),
        **_origin(policy),
    }
    files = {f"{name}.exported": bytes(program.serialize()) for name, program in exported.items()}
    for old in out.glob("*.exported"):
        old.unlink()
    # What the folder is comes first: one that was interrupted can be written anew.
    write_atomically(out / ABOUT_FILE, (json.dumps(about, indent=2, allow_nan=False) + "\n").encode())
    for name, content in files.items():
        write_atomically(out / name, content)
    write_atomically(out / LOADER.name, LOADER.read_bytes())
    return about


def _check_folder(out: Path) -> None:
    """Raises UserError where something else than an earlier export would be overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        known = json.loads((out / ABOUT_FILE).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{out}: holds other things than an export; name a new folder")


def _check_embeddable(policy: Policy) -> None:
    """Raises UserError if `llmdpd embed` cannot read descriptions as this policy's own LLM does."""
    settings = encoder_settings(policy.config.text)
    if policy.checkpoint.metadata["tuning"] or settings != TextEncoderSettings(settings.source, settings.layer):
        raise UserError(
            "export: this policy's LLM is tuned, or set up in a way that `llmdpd embed` does not know; give what it is "
            "to be told at the export, with --text or --trajectory"
        )


def _told(texts: Sequence[str] | None, trajectories: Sequence[Path] | None, count: int) -> list[dict]:
    """What each of the contexts was made of, in their order; one prompt may serve all of them."""

    def each(given: Sequence | None) -> list:
        return [None] * count if given is None else list(given) * (count // len(given))

    names = None if trajectories is None else [path.name for path in trajectories]
    return [{"text": t, "trajectory": name} for t, name in zip(each(texts), each(names), strict=True)]


def _origin(policy: Policy) -> dict[str, Any]:
    """Sizes and units of a policy, and where it comes from. JSON-able."""
    checkpoint = policy.checkpoint
    digest = hashlib.sha256()
    for name, array in sorted(flat_arrays(checkpoint).items()):
        digest.update(name.encode() + array.tobytes())
    return {
        "observation_size": policy.observation_size,
        "action_size": policy.action_size,
        "action_low": np.asarray(checkpoint.statistics.action_low).tolist(),
        "action_high": np.asarray(checkpoint.statistics.action_high).tolist(),
        "chunk": policy.chunk,
        "execute": policy.steps_per_call(),
        "family": checkpoint.metadata["manifest"]["family"],
        "horizon": checkpoint.metadata["manifest"]["horizon"],
        "text_encoder": checkpoint.metadata["text_encoder"],
        "checkpoint": str(checkpoint.path),
        "config_hash": hashlib.sha256(to_json(policy.config).encode()).hexdigest()[:16],
        "weights_sha256": digest.hexdigest(),
        "versions": {"llmdpd_jax": __version__, "jax": jax.__version__},
    }


def _describe(program: Program, exported: export.Exported) -> dict[str, Any]:
    """Shapes and types of what a program takes and gives; sizes that are free are named."""

    def describe(value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {name: describe(part) for name, part in value.items()}
        shape = [size if isinstance(size, int) else str(size) for size in value.shape]
        return {"shape": shape, "dtype": np.dtype(value.dtype).name}

    return {"arguments": describe(program.arguments), "result": describe(exported.out_avals[0])}
