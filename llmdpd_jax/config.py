"""Configuration: the default of every field, and how files and command-line overrides change it.

A file in `configs/` defines `get_config()` and returns `default_config()` with some fields changed.
"""

import difflib
import json
import math
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from llmdpd_jax.agents.diffusion_ql import POLICY_IMPROVEMENTS, STUDENT
from llmdpd_jax.diffusion.process import BOUNDS, LOSS_WEIGHTS, PARAMETERISATIONS
from llmdpd_jax.diffusion.samplers import SAMPLERS
from llmdpd_jax.diffusion.schedules import SCHEDULES, TIME_DRAWS, make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.denoiser import DENOISERS
from llmdpd_jax.models.layers import ACTIVATIONS
from llmdpd_jax.models.llm.tuning import tunes_llm
from llmdpd_jax.models.prompt_encoder import POOLINGS
from llmdpd_jax.parallel import FORMS
from llmdpd_jax.tasks.family import BACKENDS


def default_config() -> ml_collections.ConfigDict:
    """The default of every field, with its unit and origin. Locked: a field that is not here does not exist."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # seed of initialisation, batches and noise

    config.data = data = ml_collections.ConfigDict()
    data.manifest = ""  # path of tasks.json, written by `llmdpd collect` or by hand (README, "Your own data")
    data.groups = 32  # task groups per batch; each encodes its prompts once
    data.group_size = 8  # transitions per group; batch = groups * group_size = 256 (Diffusion-QL)
    data.streaming = False  # batches are read from files while training: for data that outgrow device or memory
    data.stream_cache = ""  # folder of the copy that is streamed; empty: beside the weights ($LLMDPD_CACHE)
    data.stream_updates = 20  # streamed updates per compiled call; so many batches are held at once
    data.parts = 1  # of the data, divided among the devices by episode; 1: each device holds them all
    data.return_temperature = 0.0  # of cloning a task's better episodes more, by their return; 0: all alike
    data.prompt_share = 1.0  # of a task's episodes, those of highest return, from which prompts are drawn; 1: all
    data.prompt_length = 20  # steps of a trajectory prompt; longer episodes give windows of this length

    config.text = text = ml_collections.ConfigDict()
    text.source = "smollm2"  # or "minilm", "gemma3-270m", a .gguf file, a local or hub folder of safetensors
    text.layer = 10  # hidden states after this block; the rest of the LLM never runs
    text.repeat = True  # read the description twice and keep the second copy (echo embeddings, arXiv 2402.15449)
    text.hide_numbers = True  # the LLM reads a placeholder for each number: what it means, not which task it names
    text.units = True  # lengths, speeds and angles are read in metres, m/s and radians, whatever unit they are given in
    text.continuation = 0  # tokens that the LLM goes on to say of a description, read with it (generated context)
    text.lora_rank = 0  # rank of adapters on the LLM's queries and values (LoRA: 8); 0 leaves the LLM as it is
    text.soft_tokens = 0  # learned vectors that the LLM reads before the text (prompt tuning); 0 is none
    text.random_init = False  # ablation: the same LLM with random weights

    config.model = model = ml_collections.ConfigDict()
    model.context_width = 64  # width of prompt tokens and of the context
    model.text_layers = 1  # bidirectional layers over the text prompt's tokens
    model.text_pooling = "attention"  # of the words; "mean" of the LLM's states is the plain sentence embedding
    model.trajectory_layers = 2  # transformer layers over the trajectory prompt's transitions
    model.use_llm = True  # the text prompt's LLM states (ablation)
    model.use_numbers = True  # the text prompt's numeric channel; False where no number says what a task is
    model.number_slots = 8  # numbers of a text that can matter at once, each with a meaning of its own
    model.number_dials = 0  # numbers that come round again, such as headings; where there are none, dials mislead
    model.use_rewards = True  # the trajectory prompt's rewards
    model.denoiser = "mlp"  # residual MLP; "dit": transformer over the actions of a chunk that attends to each prompt
    model.heads = 4  # dit: attention heads; they divide the width
    model.width = (
        128  # hidden units of denoiser and critic (Diffusion-QL: 256; on a CPU half of it is four times faster)
    )
    model.depth = 3  # hidden layers of denoiser and critic (Diffusion-QL: 3); blocks of a transformer
    model.denoiser_activation = "relu"  # relu, silu, gelu, mish (Diffusion-QL: mish; relu is cheaper on a CPU)
    model.critic_activation = "relu"
    model.critic_layer_norm = True  # keeps offline values bounded (Ball et al. 2023)
    model.dtype = "float32"  # of the arithmetic in denoiser and critic: float32, bfloat16 (for accelerators)
    model.critic_ensemble = 2  # critics; targets take their minimum (TD3)
    model.model_width = 128  # hidden units of the head that predicts reward and next observation

    config.diffusion = diffusion = ml_collections.ConfigDict()
    diffusion.schedule = "vp"  # vp, linear, cosine, edm, flow (Diffusion-QL: vp)
    diffusion.steps = 5  # K, diffusion steps (Diffusion-QL: 5)
    diffusion.time_draw = "grid"  # of times to train on: grid (K of them), continuous or log_normal (for any sampler)
    diffusion.parameterisation = "x0"  # what the denoiser predicts: noise, x0, velocity, flow (EDP: x0)
    diffusion.bounds = "clip"  # how clean actions are kept within [-1, 1]: clip, or scale (keeps their direction)
    diffusion.loss_weights = "uniform"  # of the denoising loss over times: uniform, min_snr, edm

    config.agent = agent = ml_collections.ConfigDict()
    agent.policy_improvement = "one_step"  # one_step (EDP), full_chain (Diffusion-QL), weighted (IDQL), student (FQL)
    agent.chunk = 1  # actions that the policy plans, and critics value, as one (Q-chunking: 5)
    agent.text_dropout = 0.3  # probability that a group trains without its text prompt
    agent.trajectory_dropout = 0.3  # probability that a group trains without its trajectory prompt
    agent.prompt_step_dropout = 0.3  # probability that a step of the trajectory prompt is left out in training
    agent.detach_context = True  # prompts are taught by predicting reward and next observation alone (GENTLE)
    agent.eta = 1.0  # weight of the normalised Q term (Diffusion-QL: 1)
    agent.cloning_weight = 0.002  # weight of the denoising loss beside it, per variance of the logged actions
    agent.expectile = 0.7  # weighted: of the values that state values follow (IQL: 0.7)
    agent.advantage_weight = 1.0  # weighted: log of how much more an action counts, per mean size of advantages
    agent.critic_weight = 1.0  # weight of the critic's loss
    agent.model_weight = 10.0  # weight of predicting reward and next observation, half each, from the context; 0: off
    agent.alignment_weight = 0.0  # weight of the contrastive text-trajectory alignment, among train tasks; 0 is off
    agent.imaginary_share = 0.0  # of groups that learn to act in a task between two, rewarded by the model's prediction
    agent.consistency_weight = 0.1  # weight of how far the contexts of a task's descriptions differ
    agent.discount = 0.0  # per step; 0 means automatic: 1 - 2 / (mean episode length), within [0.9, 0.99]
    agent.tau = 0.005  # step of the target critic (Diffusion-QL: 0.005)
    agent.ema_decay = 0.995  # decay of the acting parameters (Diffusion-QL: 0.995)
    agent.target_sampling_steps = 2  # network calls for the critic target's next actions

    config.optimiser = optimiser = ml_collections.ConfigDict()
    optimiser.learning_rate = 2e-3  # Adam
    optimiser.llm_learning_rate = 2e-4  # Adam's for adapters and soft tokens (LoRA: 2e-4)
    optimiser.final_learning_rate_fraction = 0.01  # cosine decay ends at this fraction
    optimiser.weight_decay = 0.0  # decoupled (AdamW)
    optimiser.clip_norm = 10.0  # global gradient norm

    config.train = train = ml_collections.ConfigDict()
    train.steps = 12_000  # updates
    train.distill_from = ""  # a run whose policy a student is distilled from; nothing else learns (`llmdpd distill`)
    # How an update is divided among devices: shard_map, pmap (for forks that build on it), or fsdp, where networks and
    # optimiser are divided, too.
    train.form = "shard_map"
    train.on_nonfinite = "stop"  # an update whose loss or gradient is not finite stops the run, or is left out: "skip"
    train.log_every = 250  # updates per compiled call and per line of metrics
    train.checkpoint_every = 3_000  # updates per checkpoint
    train.keep_checkpoints = 2  # newest ones that are kept
    train.keep_every = 0  # updates; checkpoints of multiples of it are kept for good; 0: none is

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.episodes = 8  # per task, prompt and wording
    evaluation.sampler = "auto"  # ddim, ancestral, dpm_solver, dpm_solver_sde, heun, midpoint; student; auto: the
    # student if there is one, else ddim
    evaluation.steps = 5  # network calls per action
    evaluation.backend = ""  # physics of Brax's robots: generalized, mjx, positional, spring; "": the family's own
    evaluation.execute = 0  # actions of a chunk that are carried out before the policy is asked again; 0 is all of them
    evaluation.best_of = 1  # actions drawn, of which the critics choose one
    evaluation.temperature = 1.0  # of the noise that actions are made from: 0 is none, and one action per observation
    evaluation.text_guidance = 1.0  # weight of the text prompt: 1 plain, 0 ignored, above 1 exaggerated
    evaluation.trajectory_guidance = 1.0
    evaluation.critic_guidance = 0.0  # weight of the critic's gradient while sampling; 0 is off

    return config.lock()


def field_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    """All fields, dotted: `["seed", "data.manifest", ...]`."""
    names = []
    for name, value in config.items():
        is_section = isinstance(value, ml_collections.ConfigDict)
        names += field_names(value, f"{prefix}{name}.") if is_section else [prefix + name]
    return names


def parse_config(arguments: list[str]) -> ml_collections.ConfigDict:
    """Reads `--config=FILE` and `--config.section.field=value` arguments into a locked config.

    Raises:
      UserError: no or missing file, or one that returns no config; an unknown field (the nearest one is named), a value
        of the wrong type.
    """
    files = [a.split("=", 1)[1] for a in arguments if a.startswith("--config=")]
    for path in files:
        if not Path(path).is_file():
            raise UserError(f"--config: no file {path}")
    if not files:
        raise UserError("--config: name a config file, for example --config=configs/point_robot.py")
    holder = flags.FlagValues()
    command_line = ["llmdpd", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=command_line)
    try:
        holder(command_line)
        config = holder["config"].value
    except (AttributeError, KeyError, flags.Error) as error:
        raise UserError(_explain(error, arguments, files[0])) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"config: {error}") from error
    except Exception as error:  # whatever the user's file does
        raise UserError(f"{files[0]}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(_no_config(files[0]))
    return config


def _no_config(path: str) -> str:
    return f"{path}: get_config() returns no config; end it with `return config`"


def _explain(error: Exception, arguments: list[str], path: str) -> str:
    """Which argument is at fault, and the nearest field."""
    known = field_names(default_config())
    for argument in arguments:
        name = argument.split("=", 1)[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            return f"{argument}: there is no field {name!r}; did you mean {nearest!r}?"
    # What ml_collections says of overrides where there is nothing to override.
    return _no_config(path) if "<class 'NoneType'>" in str(error) else f"{path}: {error}"


def to_json(config: ml_collections.ConfigDict) -> str:
    """The resolved config as JSON text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str, origin: str) -> ml_collections.ConfigDict:
    """The inverse of `to_json`: the default config with the values of the text.

    Raises:
      UserError: not JSON, or a field that this version does not have; the message names `origin`.
    """
    config = default_config()
    try:
        values = json.loads(text)
        for section, fields in values.items():
            if isinstance(fields, dict):
                config[section].update(fields)
            else:
                config[section] = fields
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{origin}: not a config of this version: {error}") from error
    return config


_CHOICES = {
    "model.denoiser": DENOISERS,
    "model.text_pooling": POOLINGS,
    "model.dtype": ("float32", "bfloat16"),
    "model.denoiser_activation": ACTIVATIONS,
    "model.critic_activation": ACTIVATIONS,
    "diffusion.schedule": SCHEDULES,
    "diffusion.time_draw": TIME_DRAWS,
    "diffusion.parameterisation": PARAMETERISATIONS,
    "diffusion.bounds": BOUNDS,
    "diffusion.loss_weights": LOSS_WEIGHTS,
    "agent.policy_improvement": POLICY_IMPROVEMENTS,
    "train.form": FORMS,
    "train.on_nonfinite": ("stop", "skip"),
    "evaluation.backend": ("", *BACKENDS),
    "evaluation.sampler": ("auto", *SAMPLERS, STUDENT),
}
# Least and largest value of a field; whatever is not listed may be any finite number of zero or more.
_RANGES = {
    **dict.fromkeys(
        (
            *(
                "data.groups",
                "data.group_size",
                "data.parts",
                "data.stream_updates",
                "data.prompt_length",
                "text.layer",
            ),
            *("model.context_width", "model.width", "model.depth", "model.critic_ensemble", "model.model_width"),
            "model.number_slots",
            *("diffusion.steps", "agent.target_sampling_steps", "evaluation.steps", "evaluation.episodes"),
            *("evaluation.best_of", "agent.chunk", "model.heads"),
            *("train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(
        (
            *("agent.text_dropout", "agent.trajectory_dropout", "agent.tau", "agent.ema_decay", "agent.discount"),
            "agent.expectile",
            "data.prompt_share",
            "agent.prompt_step_dropout",
            "agent.imaginary_share",
            "optimiser.final_learning_rate_fraction",
        ),
        (0, 1),
    ),
    **dict.fromkeys(("evaluation.text_guidance", "evaluation.trajectory_guidance"), (-math.inf, math.inf)),
    "seed": (0, 2**31 - 1),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses values that no run could use, so that a slip shows before data and LLM are read.

    Raises:
      UserError: an unknown choice, a number out of its range, or two fields that contradict each other; the message
        names the field, its value and what would be right.
    """
    for name in field_names(config):
        value = config
        for part in name.split("."):
            value = value[part]
        if name in _CHOICES and value not in _CHOICES[name]:
            near = difflib.get_close_matches(str(value), _CHOICES[name], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"{name}: {value!r} is unknown; {hint}choose one of {', '.join(_CHOICES[name])}")
        if type(value) in (int, float):
            least, most = _RANGES.get(name, (0, math.inf))
            if not (math.isfinite(value) and least <= value <= most):
                wanted = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise UserError(f"{name}: {value!r} is out of range; it must be a number {wanted}")
    if config.model.context_width % 4:
        raise UserError(f"model.context_width: {config.model.context_width} must be a multiple of 4 (attention heads)")
    if config.model.denoiser == "dit" and config.model.width % config.model.heads:
        raise UserError(
            f"model.heads: {config.model.heads} heads do not divide model.width ({config.model.width}) evenly; choose "
            "a divisor of it"
        )
    if config.train.keep_every % config.train.checkpoint_every:
        raise UserError(
            f"train.keep_every: {config.train.keep_every} must be a multiple of train.checkpoint_every "
            f"({config.train.checkpoint_every}): there are no checkpoints in between"
        )
    for name in ("agent.target_sampling_steps", "evaluation.steps"):
        section, field = name.split(".")
        if config.diffusion.time_draw == "grid" and config[section][field] > config.diffusion.steps:
            raise UserError(
                f"{name}: {config[section][field]} is more than diffusion.steps ({config.diffusion.steps}), "
                "the steps that the denoiser is trained on"
            )
    if config.evaluation.execute > config.agent.chunk:
        raise UserError(
            f"evaluation.execute: {config.evaluation.execute} is more than agent.chunk ({config.agent.chunk}), the "
            "number of actions that the policy plans at once"
        )
    make_schedule(config.diffusion.schedule, config.diffusion.steps, config.diffusion.time_draw)
    if config.diffusion.schedule == "flow" and config.diffusion.parameterisation == "noise":
        raise UserError(
            "diffusion.parameterisation: 'noise' says nothing of the action where the flow schedule has none left; "
            "choose flow, velocity or x0"
        )
    if config.evaluation.sampler == STUDENT and config.agent.policy_improvement != "student":
        raise UserError("evaluation.sampler: 'student' needs agent.policy_improvement='student'")
    if config.train.distill_from and config.agent.policy_improvement != "student":
        raise UserError("train.distill_from: needs agent.policy_improvement='student'; nothing but a student learns")
    if config.agent.detach_context and config.agent.model_weight == 0:
        raise UserError(
            "agent.model_weight: 0 leaves nothing that teaches the prompts; set agent.detach_context=False as well, so "
            "that cloning and values do"
        )
    if config.agent.imaginary_share and config.agent.model_weight == 0:
        raise UserError(
            "agent.imaginary_share: rewards of imaginary tasks are predicted by the model, which agent.model_weight=0 "
            "leaves untrained; set it above 0"
        )
    if config.evaluation.sampler == "midpoint" and config.diffusion.time_draw == "grid":
        raise UserError("evaluation.sampler: 'midpoint' visits times off a grid; set diffusion.time_draw=continuous")
    if config.agent.policy_improvement == "weighted" and config.agent.eta == 0:
        raise UserError("agent.eta: 0 leaves nothing for the policy to learn by with policy_improvement=weighted")
    if tunes_llm(config) and not config.model.use_llm:
        raise UserError("text.lora_rank, text.soft_tokens: there is no LLM to tune with model.use_llm=False")
    if config.optimiser.learning_rate == 0 or config.optimiser.clip_norm == 0:
        raise UserError("optimiser.learning_rate, optimiser.clip_norm: must be above 0, or nothing is learned")
    if not config.data.manifest:
        raise UserError("data.manifest: is empty; name a tasks.json, for example one written by `llmdpd collect`")
