"""Text prompts: from a description to what the LLM reads of it, and from what it says of that to a `TextPrompt`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.numbers import Number, hide_numbers, read_numbers, spelling_tokens, values_at
from llmdpd_jax.types import TextPrompt

PADDING = {"states": 0.0, "mask": False, "numbers": 0.0, "number_index": -1}


@dataclass(frozen=True)
class Reading:
    """A description as the LLM is given it."""

    text: str
    numbers: tuple[Number, ...]  # with their places in `text`


@dataclass(frozen=True)
class TokenStates:
    """What the LLM says of a text of L tokens."""

    states: np.ndarray  # [L, D] hidden states
    offsets: np.ndarray  # [L, 2] int32, the characters (start, end) each token covers


def read_description(description: str, hide: bool, units: bool = True) -> Reading:
    """The reading of a description, numbers replaced by a placeholder if `hide`, in SI units if `units`."""
    text = description.strip()
    text, numbers = hide_numbers(text, units) if hide else (text, read_numbers(text, units))
    return Reading(text, tuple(numbers))


def make_text_prompts(readings: Sequence[Reading], tokens: Mapping[str, TokenStates]) -> list[TextPrompt]:
    """The prompts [L_i, ...] of readings, of NumPy arrays, given what the LLM says of each of their texts.

    Readings of one text share its arrays, but for the values of their numbers: thousands of descriptions that differ in
    hidden numbers only cost little more than the few texts that the LLM reads.
    """
    shared: dict[tuple, dict[str, np.ndarray]] = {}

    def make(reading: Reading) -> TextPrompt:
        # The text alone may leave it open which of its digits are placeholders.
        key = reading.text, *((number.start, number.end) for number in reading.numbers)
        if key not in shared:
            of_text = tokens[reading.text]
            index = spelling_tokens(reading.text, reading.numbers, of_text.offsets.tolist())
            shared[key] = {"states": of_text.states, "mask": np.ones(len(index), bool), "number_index": index}
        arrays = shared[key]
        return TextPrompt(**arrays, numbers=values_at(reading.numbers, arrays["number_index"]))

    return [make(reading) for reading in readings]


def pad_and_stack(prompts: Sequence[TextPrompt]) -> TextPrompt:
    """Stacks B prompts of shapes [L_i, ...] into one [B, max L_i, ...] of NumPy arrays, padded on the right."""
    length = max(len(prompt.mask) for prompt in prompts)

    def stack(name: str) -> np.ndarray:
        arrays = [np.asarray(getattr(prompt, name)) for prompt in prompts]
        stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), PADDING[name], arrays[0].dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: len(array)] = array
        return stacked

    return TextPrompt(**{field.name: stack(field.name) for field in fields(TextPrompt)})


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises UserError unless they are one or more non-empty strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"descriptions: expected a list of strings, got {type(texts).__name__}")
    if not texts:
        raise UserError("descriptions: the list is empty, at least one is needed")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"descriptions[{i}]: expected a string, got {type(text).__name__} ({text!r:.60})")
        if not text.strip():
            raise UserError(f"descriptions[{i}]: the description is empty")
    return list(texts)
