"""Brax's ant, and how a learned expert sees it: always as an ant that is to go ahead.

Which way the world's axes point is of no account to an ant that is to go in a direction: told the direction in its own
frame, an expert learns once what it would otherwise learn for every heading. Nor does it matter which legs are in
front, as after a quarter turn about the vertical every leg is where its neighbour was. So legs are counted from the
torso's axis that is nearest to the direction, which then lies within 45 degrees of straight ahead. (In Brax's `spring`
physics an ant so turned moves by about a hundredth otherwise.)
"""

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.environment import PipelineEnv, make_robot, unturned
from llmdpd_jax.tasks.physics import BACKEND

BODY = 27  # numbers of Brax's observation
LEGS = 4  # of Brax's model: at 45, 135, 225 and 315 degrees from its x axis
DOWNWARDS = np.array([1.0, -1.0, -1.0, 1.0])  # the sign of an ankle's angle where it bends so, leg by leg
FIRST_MOTOR = 3  # the leg that an action begins with; the others follow in turn


def make_ant(backend: str = BACKEND, **options) -> PipelineEnv:
    """Brax's ant, whose episodes have no end but the time limit."""
    return make_robot("ant", backend, terminate_when_unhealthy=False, **options)


def towards(direction: jax.Array, body: jax.Array) -> jax.Array:
    """What an expert sees of an ant that is to go in a direction: `[29]`.

    Height (m); up, the direction, the velocity (m/s) and the angular velocity (rad/s), as seen by an ant that faces
    along that axis of its torso which is nearest to the direction; hip and ankle of each leg, counterclockwise from
    there: angles (rad), then their speeds. Ankles are positive downwards.

    Args:
        direction: unit vector `[2]` on the plane.
        body: what Brax observes of an ant but for its place, `[27]`: height, quaternion (w, x, y, z), angles of the
            joints; the torso's velocity in the world and its angular velocity in its own frame, the joints' speeds.
    """
    height, rotation, angles, velocity, spin, speeds = jnp.split(body, [1, 5, 13, 16, 19])
    turns = _quarter_turns(direction, rotation)
    up, ahead = jnp.array([0.0, 0.0, 1.0]), jnp.append(direction, 0.0)
    seen = [unturned(vector, rotation) for vector in (up, ahead, velocity)] + [spin]
    legs = [jnp.roll(_mirrored(values), -turns, axis=0).ravel() for values in (angles, speeds)]
    return jnp.concatenate([height, *(_turned_back(vector, turns) for vector in seen), *legs])


def act_towards(direction: jax.Array, body: jax.Array, action: jax.Array) -> jax.Array:
    """Torques `[8]` in Brax's order, of an expert's torques `[8]` in the order of the legs that `towards` shows."""
    legs = _mirrored(jnp.roll(action.reshape(LEGS, 2), _quarter_turns(direction, body[1:5]), axis=0))
    return jnp.roll(legs, -FIRST_MOTOR, axis=0).ravel()


def _mirrored(values: jax.Array) -> jax.Array:
    """Of every leg hip and ankle `[4, 2]`: ankles positive downwards, where they were as in Brax's model; or back."""
    return values.reshape(LEGS, 2) * np.stack([np.ones(LEGS), DOWNWARDS], axis=1)


def _quarter_turns(direction: jax.Array, rotation: jax.Array) -> jax.Array:
    """How many quarter turns to the left of the torso's x axis its axis nearest to a direction lies: 0, 1, 2 or 3."""
    ahead, left, _ = unturned(jnp.append(direction, 0.0), rotation)
    return jnp.round(jnp.arctan2(left, ahead) / (jnp.pi / 2)).astype(jnp.int32) % LEGS


def _turned_back(vector: jax.Array, turns: jax.Array) -> jax.Array:
    """A vector `[3]` turned to the right about the z axis, by quarter turns."""
    cosine, sine = jnp.array([1.0, 0.0, -1.0, 0.0])[turns], jnp.array([0.0, 1.0, 0.0, -1.0])[turns]
    x, y, z = vector
    return jnp.array([cosine * x + sine * y, cosine * y - sine * x, z])
