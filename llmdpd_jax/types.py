"""The pytrees that layers hand to each other. Leading axes are batch axes unless a name says otherwise.

Axis names: B batch, E episodes, N tasks, T time steps, L tokens, D width of the LLM's hidden states, O observation
size, A action size, H steps of a chunk of actions (`agent.chunk`; 1 unless set).
"""

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class LLMInput:
    """A description on its way into an LLM that is being tuned: what its states are to be computed from."""

    tokens: Array  # [..., M] int32, the description's own tokens and what the LLM reads before them
    mask: Array  # [..., M] bool, True at real tokens
    places: Array  # [..., L] int32, which of them are the description's own; 0 where padded


@struct.dataclass
class TextPrompt:
    """A description as the LLM reads it, with the numbers in it read exactly.

    The same number is written at every token that helps to spell it ("-0.42" is several tokens).
    """

    states: Array | LLMInput  # [..., L, D] float32, LLM hidden states of the description's tokens, 0 where padded
    mask: Array  # [..., L] bool, True at real tokens
    numbers: Array  # [..., L] float32, value of the number a token helps to spell, 0 elsewhere
    number_index: (
        Array  # [..., L] int32, 0 for tokens of the first number of the text, 1 for the second ..., -1 elsewhere
    )


@struct.dataclass
class TrajectoryPrompt:
    """An episode, or a window of one, of the task that is to be done. Padded steps have mask False."""

    observations: Array  # [..., T, O] observation before the action, in the data's own units
    actions: Array  # [..., T, A]
    rewards: Array  # [..., T]
    next_observations: Array  # [..., T, O]
    mask: Array  # [..., T] bool


@struct.dataclass
class Statistics:
    """What the networks need to know of the data's units. From train tasks only; travels in the checkpoint."""

    observation_mean: Array  # [O]
    observation_std: Array  # [O]
    action_low: Array  # [A] bounds of the action space
    action_high: Array  # [A]
    reward_mean: Array  # []
    reward_std: Array  # []


@struct.dataclass
class TextStatistics:
    """Units of the text prompts. From the train tasks' descriptions only; travels in the checkpoint."""

    state_mean: Array  # [D]
    state_std: Array  # [D]
    state_axes: Array  # [D, K] principal axes of the standardised states, scaled to a mean power of 1
    number_scale: Array  # [], median size of the numbers in the descriptions, zeros left out


@struct.dataclass
class Store:
    """A multi-task data set: padded episodes with their task. Training keeps it on the devices."""

    observations: Array  # [E, T + 1, O], the last one is the observation after the last action
    actions: Array  # [E, T, A]
    rewards: Array  # [E, T]
    terminations: Array  # [E, T] bool, True where the task really ended; a time limit (truncation) is not an end
    lengths: Array  # [E] int32, number of actions of an episode
    task_id: Array  # [E] int32, 0 .. N - 1
    task_episodes: Array  # [N, M] int32, episodes of each task, best return first; padded by repeating the row's own
    task_counts: Array  # [N] int32, how many entries of the row are real
    weights: Array | None = None  # [E] float32, how much an episode's transitions count in cloning; None: all alike


@struct.dataclass
class Batch:
    """G groups of S transitions. A group is one task with one trajectory prompt that its transitions share."""

    observations: Array  # [G, S, O]
    actions: Array  # [G, S, H * A], H of an episode in a row
    rewards: Array  # [G, S], discounted sum over the H steps
    next_observations: Array  # [G, S, O], after the H steps
    terminations: Array  # [G, S] bool, whether the task ended within them
    task_id: Array  # [G] int32
    prompt: TrajectoryPrompt  # [G, T, ...], another episode of the task than any its transitions come from
    weights: Array | None = None  # [G, S] how much a transition counts in cloning; None: all alike
