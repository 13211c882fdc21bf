"""How fast tasks are simulated: beside Brax's own environment, and with a policy in the loop beside none."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.agents.diffusion_ql import STUDENT, Context
from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.bench.cost import whole_inputs
from llmdpd_jax.bench.machine import device_name
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.config import default_config
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import TaskFamily, get_family
from llmdpd_jax.tasks.physics import PhysicsTask
from llmdpd_jax.types import Array

ENVIRONMENTS = 512
STEPS = 50  # of a turn
SAMPLER_STEPS = 5
RANDOM, CHAIN = "random actions", "chain"


class Simulation:
    """One side: environments that step together, each of a task of its own."""

    def __init__(self, family: str, acting: str, environments: int, steps: int, own: bool = False):
        """acting: RANDOM, CHAIN or STUDENT, of untrained networks of the default config; own: Brax's environment."""
        chosen = get_family(family)
        env = chosen.make_env()
        if own:
            env = env.brax_env
        self.environments, self.steps, self.key = environments, steps, jax.random.key(0)
        start = jax.jit(jax.vmap(env.reset))(jax.random.split(self.key, environments))
        params, act = make_acting(chosen, acting, environments)

        @jax.jit
        def rollout(params: dict, state, key: Array) -> Array:
            def step(state, key):
                state = jax.vmap(env.step)(state, act(params, state.obs, key))
                return state, jnp.sum(state.reward)

            return jnp.sum(jax.lax.scan(step, state, jax.random.split(key, steps))[1])

        self.rollout = lambda key: rollout(params, start, key)

    def facts(self) -> dict:
        """The device."""
        return {"device": device_name(jax.devices()[0])}

    def run(self) -> None:
        """A rollout from the start."""
        self.key, key = jax.random.split(self.key)
        self.rollout(key).block_until_ready()

    def result(self, layer: None) -> np.ndarray:
        """The sum of all rewards with key 0."""
        return np.asarray(self.rollout(jax.random.key(0)))


def make_acting(
    family: TaskFamily, acting: str, environments: int
) -> tuple[dict, Callable[[dict, Array, Array], Array]]:
    """Parameters and `(params, observations [N, O], key) -> actions [N, A]`."""
    if acting == RANDOM:
        shape = environments, family.action_size
        return {}, lambda params, seen, key: jax.random.uniform(key, shape, minval=-1.0)
    config = default_config()
    config.agent.policy_improvement = STUDENT if acting == STUDENT else "one_step"
    agent = make_agent(config, family.observation_size, family.action_size)
    inputs = whole_inputs(config, family.observation_size, family.action_size)
    params = jax.jit(agent.init)(jax.random.key(0), *inputs).acting
    told = jax.random.normal(jax.random.key(1), (environments, config.model.context_width))
    context = Context(told, told, told)
    sampler = STUDENT if acting == STUDENT else "ddim"

    def act(params: dict, seen: Array, key: Array) -> Array:
        return agent.act(params, seen, context, key, sampler, None if acting == STUDENT else SAMPLER_STEPS)

    return params, act


def run_env(family: str, cpus: Sequence[int], repeats: int, environments: int = ENVIRONMENTS) -> Report:
    """Environment steps/s of a batch of different tasks, beside Brax's own environment (one task) of the same size.

    Raises: UserError if the family is not one of Brax's robots.
    """
    if not isinstance(get_family(family).make_env(), PhysicsTask):
        raise UserError(f"bench env: {family!r} is no robot of Brax, so there is nothing to compare with")
    sides = {"tasks": {"acting": RANDOM}, "Brax's own": {"acting": RANDOM, "own": True}}
    return _run(family, f"env/{family}, batch {environments}", sides, cpus, repeats, environments)


def run_eval(family: str, cpus: Sequence[int], repeats: int, environments: int = ENVIRONMENTS) -> Report:
    """Environment steps/s with a policy in the loop, a chain of 5 steps and a student, beside random actions."""
    sides = {name: {"acting": name} for name in (CHAIN, STUDENT, RANDOM)}
    return _run(family, f"eval/{family}, batch {environments}", sides, cpus, repeats, environments)


def _run(
    family: str, name: str, sides: dict[str, dict], cpus: Sequence[int], repeats: int, environments: int
) -> Report:
    """Rows of all sides but the last, beside the last."""
    *shown, reference = sides
    with ExitStack() as stack:
        workers = {}
        for side, arguments in sides.items():
            given = {"family": family, "environments": environments, "steps": STEPS, **arguments}
            workers[side] = stack.enter_context(Worker(f"{name}, {side}", Simulation, given, cpus))
        device = workers[reference].ask(do="facts")["device"]
        seconds, _ = take_turns(workers, repeats, peak=False)
    rates = {side: environments * STEPS / seconds[side] for side in sides}
    return Report(
        tuple(
            Row(f"{name}, {side}", rates[side], "steps/s", len(cpus), device, reference, rates[reference])
            for side in shown
        )
    )
