"""Experts for task families with learned behaviour: Brax's PPO, told the task parameters. Only data collection uses it.

The learner's snapshots become the family's behaviour policies (`tasks.experts`), from random to expert.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.data.collect import mean_returns, returns_of, roll_out
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.environment import State, TaskEnv, Wrapper
from llmdpd_jax.tasks.experts import Expert, make_behaviour, save_expert
from llmdpd_jax.tasks.family import Frame, Task, TaskFamily, get_family
from llmdpd_jax.training.interrupt import Interrupt

with contextlib.redirect_stdout(io.StringIO()):  # Importing Brax prints warnings about optional GPU packages.
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.ppo import train as ppo

SNAPSHOTS = 8  # kept of a learner
LOOKS = 40  # at a learner, of which the snapshots are chosen
HIDDEN = (128, 128)

# Of Brax's PPO. One turn logs batch_size x num_minibatches x unroll_length = 10,240 steps.
PPO_SETTINGS = {
    "num_envs": 512,
    "unroll_length": 20,
    "batch_size": 64,
    "num_minibatches": 8,
    "num_updates_per_batch": 6,
    "learning_rate": 6e-4,
    "entropy_cost": 1e-3,
    "discounting": 0.97,
    "reward_scaling": 1.0,
    "normalize_observations": True,
    "num_resets_per_eval": 1,  # new tasks at every look
}

# Where a family's differ. A turn logs 10,240 steps as well, half as many from each of twice as many environments: of
# Brax's ant these take less time. The entropy cost is that of Brax's own experiments with it.
ANT_SETTINGS = {
    "num_envs": 1024,
    "unroll_length": 10,
    "batch_size": 128,
    "num_updates_per_batch": 5,
    "learning_rate": 4e-4,
    "entropy_cost": 1e-2,
}
# Steps of 0.008 s: a robot that leans falls some 50 of them later.
PARAMS_SETTINGS = {"discounting": 0.99, "learning_rate": 3e-4}
FAMILY_SETTINGS = {
    "ant_dir": ANT_SETTINGS,
    "ant_goal": ANT_SETTINGS,
    "hopper_params": PARAMS_SETTINGS,
    "walker_params": PARAMS_SETTINGS,
}


class _EndedEarly(Exception):
    """Leaves Brax's loop, which offers no other way."""


class Told(Wrapper):
    """An environment as a learner sees it, that is told the task parameters; of one task if it is given."""

    def __init__(self, env: TaskEnv, frame: Frame, parameters: np.ndarray | None = None):
        super().__init__(env)
        self._frame, self._parameters = frame, parameters

    def reset(self, rng: jax.Array) -> State:
        if self._parameters is None:
            return self._told(self.env.reset(rng))
        return self._told(self.env.reset_task(rng, self._parameters))

    def step(self, state: State, action: jax.Array) -> State:
        pipeline_state, observation = state.pipeline_state
        own = state.replace(pipeline_state=pipeline_state, obs=observation)
        return self._told(self.env.step(own, self._frame.action(observation, state.info["parameters"], action)))

    @property
    def observation_size(self) -> int:
        return jax.eval_shape(self.reset, jax.random.key(0)).obs.shape[-1]

    def _told(self, state: State) -> State:
        """The observation is kept beside the pipeline's state, so that Brax puts both back where it starts anew."""
        inputs = self._frame.inputs(state.obs, state.info["parameters"])
        return state.replace(pipeline_state=(state.pipeline_state, state.obs), obs=inputs)


def train_expert(family_name: str, steps: int, out: Path, task: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Trains one expert for all tasks of a family (or for one task), and writes its snapshots.

    SIGINT and SIGTERM end the training at its next look; what it learned so far is written.

    Args:
        family_name: a registered family whose environment is a Brax one.
        steps: of the environment.
        out: the file to write.
        task: name of the only task to train on; None draws tasks at random, test tasks' parameters among them: an
            expert logs data of every task, and is no part of what is learned from train tasks.
        seed: of everything.

    Returns:
        The record that lies in the file: settings, the curve, returns per task.

    Raises:
        UserError: an unknown family or task, or less than one step.
    """
    family = get_family(family_name)
    if steps < 1:
        raise UserError(f"expert: steps must be at least 1, found {steps}")
    chosen = [one for one in family.tasks() if one.name == task] if task else None
    if chosen == []:
        raise UserError(f"task family {family_name!r} has no task {task!r}; `llmdpd tasks --family` lists them")
    parameters = family.parameter_array(chosen[0].parameters) if chosen else None
    _mend_brax()
    looks, began = [], time.monotonic()
    with Interrupt("the expert as far as it got") as interrupt:
        with progress_bar(True) as bar, contextlib.suppress(_EndedEarly):
            shown = bar.add_task("training an expert", total=steps)

            def look(step: int, _: Callable, params: tuple) -> None:
                looks.append((step, jax.device_get(params[:2])))
                bar.update(shown, completed=step)
                if interrupt.signal is not None and len(looks) > 1:
                    raise _EndedEarly

            ppo.train(
                environment=Told(family.make_env(), family.frame, parameters),
                num_timesteps=steps,
                episode_length=family.horizon,
                network_factory=partial(
                    ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=HIDDEN, value_hidden_layer_sizes=HIDDEN
                ),
                policy_params_fn=look,
                num_evals=LOOKS,
                run_evals=False,
                seed=seed,
                **PPO_SETTINGS | FAMILY_SETTINGS.get(family_name, {}),
            )
        # Minutes for a slow robot: what was learned must not be lost then either.
        expert, record = _measure(family, looks, chosen)
    record |= {"family": family_name, "task": task, "seed": seed, "seconds": round(time.monotonic() - began)}
    save_expert(out, expert, record)
    return record


def _measure(family: TaskFamily, looks: list[tuple], chosen: list[Task] | None) -> tuple[Expert, dict[str, Any]]:
    """The snapshots chosen of all looks, and what a file says of them: the curve, and returns of every task."""
    learner = stack([params for _, params in looks])
    tasks = chosen or [one for one in family.tasks() if one.split == "train"]
    expert, curve = choose_snapshots(family, learner, np.stack([family.parameter_array(t.parameters) for t in tasks]))
    every = chosen or family.tasks()
    played = dataclasses.replace(family, behaviour=partial(make_behaviour, expert, frame=family.frame))
    returns = {
        quality: mean_returns(played, quality, np.stack([family.parameter_array(t.parameters) for t in every]), 20)
        for quality in ("random", "medium", "expert")
    }
    return expert, {
        "steps": int(looks[-1][0]),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("brax", "jax")},
        "curve": [{"steps": int(step), "return": value} for (step, _), value in zip(looks, curve, strict=True)],
        "returns": {
            quality: dict(zip([t.name for t in every], map(float, values), strict=True))
            for quality, values in returns.items()
        },
    }


def stack(looks: list[tuple]) -> Expert:
    """Brax's parameters (statistics of the inputs, policy) of several looks as one Expert."""
    statistics, policies = zip(*looks, strict=True)
    layers = [f"hidden_{i}" for i in range(len(HIDDEN) + 1)]
    weights = [[policy["params"][layer] for policy in policies] for layer in layers]
    return Expert(
        mean=np.stack([one.mean for one in statistics]),
        std=np.stack([one.std for one in statistics]),
        kernels=tuple(np.stack([one["kernel"] for one in layer]) for layer in weights),
        biases=tuple(np.stack([one["bias"] for one in layer]) for layer in weights),
        medium=0,
    )


def choose_snapshots(family: TaskFamily, learner: Expert, parameters: np.ndarray) -> tuple[Expert, list[float]]:
    """Of all looks those whose returns divide the way from the first to the best evenly, in the order of training.

    Returns:
        The chosen snapshots, and the mean return of every look over the tasks with the parameters `[N, P]`.
    """
    # "mixed" of as many episodes as looks plays every look once.
    played = dataclasses.replace(family, behaviour=partial(make_behaviour, learner, drawn=False, frame=family.frame))
    shape = len(parameters), learner.snapshots
    seeds = jax.random.bits(jax.random.key(0), shape)
    curve = np.asarray(jax.jit(lambda: returns_of(roll_out(played, "mixed", seeds, parameters)))()).mean(0)
    best = int(np.argmax(curve))
    wanted = np.linspace(curve[0], curve[best], SNAPSHOTS)
    chosen = np.sort(np.abs(curve[: best + 1, None] - wanted).argmin(0))
    medium = int(np.abs(curve[chosen] - (curve[0] + curve[best]) / 2).argmin())
    return jax.tree.map(lambda x: x[chosen], learner).replace(medium=medium), curve.tolist()


def _mend_brax() -> None:
    """Brax's agents call `jax.device_put_replicated`, which JAX 0.10 removed (google/brax#671)."""
    if not hasattr(jax, "device_put_replicated"):

        def replicated(tree, devices):
            return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

        jax.device_put_replicated = replicated
