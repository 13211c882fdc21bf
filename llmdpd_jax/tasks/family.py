"""What a task family is, and the registry of families.

A family is one environment with task parameters, its train and test tasks, the policies that log data in it, and the
sentences that describe a task. Adding one: write `tasks/<name>.py` with a function that returns a `TaskFamily`, and
call `register_family` (or add it to `_FACTORIES` below).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.wording import Quantity, Wording, describe

if TYPE_CHECKING:  # Brax takes seconds to import, and reading a manifest does not need it.
    from llmdpd_jax.tasks.environment import TaskEnv

SPLITS = ("train", "test")
BACKENDS = ("generalized", "mjx", "positional", "spring")  # physics of Brax's
QUALITIES = ("random", "replay", "medium", "mixed", "expert")  # replay and mixed are logs of a learner, see `collect`


def check_quality(quality: str) -> None:
    """Raises `UserError` for a quality that is not one of QUALITIES."""
    if quality not in QUALITIES:
        raise UserError(f"unknown quality {quality!r} (known: {', '.join(QUALITIES)})")


@dataclass(frozen=True)
class Task:
    """One task of a family."""

    name: str  # unique in the family, such as "train-07"
    split: str  # one of SPLITS
    parameters: Mapping[str, float]  # by the family's parameter names


@dataclass(frozen=True)
class Behaviour:
    """A policy that logs data. Both functions are pure and handle one episode; callers vmap.

    `draw(key, progress, parameters[P]) -> traits` fixes what an episode keeps throughout, such as a wrong idea of the
    goal. `progress` in [0, 1] is the episode's place in its data set (0 first, 1 last), so that a data set can look
    like the log of a learner.
    `act(traits, parameters[P], observation[O], key) -> action[A]`; the caller clips to the action bounds.
    """

    draw: Callable[[jax.Array, jax.Array, jax.Array], Any]
    act: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def _told(observation: jax.Array, parameters: jax.Array) -> jax.Array:
    """An observation `[O]` with the task parameters `[P]` behind it."""
    return jnp.concatenate([observation, parameters])


def _as_it_is(observation: jax.Array, parameters: jax.Array, action: jax.Array) -> jax.Array:
    del observation, parameters
    return action


@dataclass(frozen=True)
class Frame:
    """How a learned expert sees the tasks of a family and acts in them. Both functions handle one step; callers vmap.

    What tasks have in common need not be learned anew for each: where a robot looks the same from several sides, the
    expert may see it always from the same one. By default it is told observation and parameters as they are.

    `inputs(observation[O], parameters[P]) -> inputs[I]` of the expert;
    `action(observation[O], parameters[P], action[A]) -> action[A]` of the environment, for one of the expert.
    """

    inputs: Callable[[jax.Array, jax.Array], jax.Array] = _told
    action: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = _as_it_is


PLAIN = Frame()


@dataclass(frozen=True)
class PlaneView:
    """How to draw an episode on a plane."""

    position: tuple[int, int]  # observation indices of the horizontal and vertical coordinate
    goal: tuple[str, str] | None  # parameter names of the goal's coordinates
    # Task parameters -> the walls [W, 4], where there are any: x and y of the lower left corner, width, height.
    walls: Callable[[Mapping[str, float]], np.ndarray] | None = None


@dataclass(frozen=True)
class TimeView:
    """How to draw an episode over time, where one number says whether it does what it should."""

    observation: int  # index of that number
    label: str  # what it is, with its unit
    target: str | None  # name of the parameter it should reach


@dataclass(frozen=True)
class TaskFamily:
    """An environment, its tasks, behaviour policies and wording.

    `make_env`, `tasks` and `behaviour` are functions so that a family whose environment or experts are expensive
    builds them only when asked. `behaviour(quality)` takes one of QUALITIES; a family with learned experts loads them
    there.
    """

    name: str
    horizon: int  # steps of an episode
    observation_low: tuple[float, ...]  # [O]
    observation_high: tuple[float, ...]  # [O]
    action_low: tuple[float, ...]  # [A]
    action_high: tuple[float, ...]  # [A]
    parameter_names: tuple[str, ...]
    make_env: Callable[..., TaskEnv]  # of a robot of Brax's: takes `backend`, one of BACKENDS
    tasks: Callable[[], tuple[Task, ...]]  # all splits, from a fixed seed
    behaviour: Callable[[str], Behaviour]
    wordings: tuple[Wording, ...]
    phrases: Callable[
        [Mapping[str, float]], dict[str, str | Quantity]
    ]  # task parameters -> fields of the wordings' templates
    reference_episodes: int  # episodes that measure a task's random and expert reference
    view: PlaneView | TimeView | None = None
    expert: Path | None = None  # file of a learned expert: data logged by another one are other data
    frame: Frame = PLAIN  # of a learned expert

    @property
    def observation_size(self) -> int:
        return len(self.observation_low)

    @property
    def action_size(self) -> int:
        return len(self.action_low)

    def environment(self, backend: str = "") -> TaskEnv:
        """The environment; with another of BACKENDS than the family's own, as a test of how a policy bears that.

        Raises:
            UserError: an unknown backend, or a family without a robot of Brax's.
        """
        if not backend:
            return self.make_env()
        if backend not in BACKENDS:
            raise UserError(f"unknown physics backend {backend!r} (known: {', '.join(BACKENDS)})")
        if self.make_env().backend == "none":
            raise UserError(f"task family {self.name!r} has no robot of Brax's, so it has no backend {backend!r}")
        return self.make_env(backend=backend)

    def descriptions(self, parameters: Mapping[str, float], *, held_out: bool) -> tuple[str, ...]:
        """One description of the task for each train wording, or each held-out one; always the same."""
        return describe(self.wordings, self.phrases(parameters), held_out=held_out)

    def parameter_array(self, parameters: Mapping[str, float], where: str = "parameters") -> np.ndarray:
        """The parameters `[P]` float32 in the family's order.

        Raises:
            UserError: a name is missing or unknown; the message starts with `where`.
        """
        if set(parameters) != set(self.parameter_names):
            raise UserError(
                f"{where}: task family {self.name!r} has the parameters {list(self.parameter_names)}, "
                f"found {sorted(parameters)}"
            )
        return np.array([parameters[name] for name in self.parameter_names], np.float32)


# By module and function name, so that listing families imports no environment.
_FACTORIES: dict[str, str | Callable[[], TaskFamily]] = {
    "ant_dir": "llmdpd_jax.tasks.ant_dir:ant_dir",
    "ant_goal": "llmdpd_jax.tasks.ant_goal:ant_goal",
    "cheetah_dir": "llmdpd_jax.tasks.cheetah_dir:cheetah_dir",
    "cheetah_vel": "llmdpd_jax.tasks.cheetah_vel:cheetah_vel",
    "hopper_params": "llmdpd_jax.tasks.hopper_params:hopper_params",
    "maze": "llmdpd_jax.tasks.maze:maze",
    "maze_gaps": "llmdpd_jax.tasks.maze_gaps:maze_gaps",
    "point_robot": "llmdpd_jax.tasks.point_robot:point_robot",
    "reacher_goal": "llmdpd_jax.tasks.reacher_goal:reacher_goal",
    "walker_params": "llmdpd_jax.tasks.walker_params:walker_params",
}


def family_names() -> tuple[str, ...]:
    """Names of all registered families, sorted."""
    return tuple(sorted(_FACTORIES))


def register_family(name: str, factory: Callable[[], TaskFamily]) -> None:
    """Makes a family known by name; `factory` should return the same object each time, as `functools.cache` does.

    Raises `UserError` when the name is taken.
    """
    if name in _FACTORIES:
        raise UserError(f"task family {name!r} is already registered")
    _FACTORIES[name] = factory


def get_family(name: str) -> TaskFamily:
    """The registered family of that name. Raises `UserError` naming the nearest and all known names."""
    if name not in _FACTORIES:
        near = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown task family {name!r}{hint} (known: {', '.join(family_names())})")
    factory = _FACTORIES[name]
    if isinstance(factory, str):
        module, function = factory.split(":")
        factory = getattr(importlib.import_module(module), function)
    return factory()
