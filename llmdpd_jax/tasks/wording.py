"""Sentences that describe a task, and ways to write its numbers.

A wording is a template: the same parameters always give the same sentence, and the sentence determines them. "held_out"
wordings are kept from training to measure how a policy copes with a sentence build it has never read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Wording:
    """A template of one sentence build; its `{fields}` are filled with a family's phrases for a task."""

    name: str
    template: str
    held_out: bool


def describe(wordings: Sequence[Wording], phrases: Mapping[str, str], *, held_out: bool) -> tuple[str, ...]:
    """One description of a task for each train (or each held-out) wording, in the wordings' order."""
    return tuple(wording.template.format(**phrases) for wording in wordings if wording.held_out == held_out)


def decimal(value: float, digits: int = 2, plus: bool = False) -> str:
    """`-0.42`; a zero has no minus sign. `plus` writes `+0.31`."""
    text = f"{value:{'+' if plus else ''}.{digits}f}"
    return text.replace("-", "+" if plus else "") if float(text) == 0 else text


def short(value: float) -> str:
    """With as few decimals as two allow: `0.3`, `-1`, `0.42`."""
    text = decimal(value)
    return text.rstrip("0").rstrip(".")


def spelled(value: float) -> str:
    """In words, digit by digit: `minus zero point four two`."""
    text = decimal(value)
    whole, _, fraction = text.removeprefix("-").partition(".")
    words = [*(_DIGITS[int(d)] for d in whole), "point", *(_DIGITS[int(d)] for d in fraction)]
    return " ".join(["minus", *words] if text.startswith("-") else words)


def side(value: float, positive: str, negative: str) -> str:
    """The word for a number's sign, beside which its size is written without one."""
    return negative if value < 0 else positive
