"""Sentences that describe a task, and ways to write its numbers.

A wording is a template: the same parameters always give the same sentence, and the sentence determines them up to its
rounding. "held_out" wordings are kept from training to measure how a policy copes with a sentence build it has never
read.

Wordings are composed of three kinds of parts: a *frame* is a sentence with places for what is asked ("Go to {a} and
{b}."), a *phrase* says one quantity ("an abscissa of <x>"), and a *writing* says how its number is spelled and in which
unit ("2 cm" with " centimetres").
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.wordings.asides import AFTER, BEFORE

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

# What one of a unit is in metres, metres per second, radians or times.
UNITS = {
    "m": 1.0,
    "cm": 0.01,
    "mm": 0.001,
    "dm": 0.1,
    "inch": 0.0254,
    "ft": 0.3048,
    "m/s": 1.0,
    "cm/s": 0.01,
    "m/min": 1 / 60,
    "km/h": 1 / 3.6,
    "mph": 0.44704,
    "ft/s": 0.3048,
    "knot": 1852 / 3600,
    "furlong/h": 201.168 / 3600,
    "rad": 1.0,
    "deg": math.pi / 180,
    "turn": 2 * math.pi,
    "gon": math.pi / 200,
    "percent": 0.01,
}


@dataclass(frozen=True)
class Wording:
    """A template of one sentence build; its `{fields}` are filled with a family's phrases for a task."""

    name: str
    template: str
    held_out: bool


def describe(
    wordings: Sequence[Wording], phrases: Mapping[str, "str | Quantity"], *, held_out: bool
) -> tuple[str, ...]:
    """One description of a task for each train (or each held-out) wording, in the wordings' order."""
    return tuple(wording.template.format(**phrases) for wording in wordings if wording.held_out == held_out)


# --- numbers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A number that each template writes its own way, by the format given behind the field's name.

    The format is a list of words in any order: a digit (how many decimals, 2 by default), a unit of `UNITS` (the value
    is given in metres, metres per second, radians or times), `+` (a sign in any case), `size` (no sign), `short` (no
    needless zeros), `words` (spelled out), `exp` (3.10e-01) or `times` (3.10x10^-1). `{x:size 1 cm} cm` writes
    `42.0 cm`.
    `{x:east|west}` is no number but the word for its sign.
    """

    value: float

    def __format__(self, spec: str) -> str:
        if "|" in spec:
            return side(self.value, *spec.split("|"))
        value, digits, style = self.value, 2, ""
        for word in spec.split():
            if word in UNITS:
                value /= UNITS[word]
            elif word.isdigit():
                digits = int(word)
            elif word == "size":
                value = abs(value)
            elif word in ("+", "short", "words", "exp", "times"):
                style = word
            else:
                raise UserError(f"wording: {word!r} in the format {spec!r} is neither a unit of UNITS nor a style")
        if style == "words":
            return spelled(value, digits)
        if style in ("exp", "times"):
            text = f"{value + 0.0:.{digits}e}"
            return text if style == "exp" else "{}x10^{}".format(*(text.split("e")[0], int(text.split("e")[1])))
        text = decimal(value, digits, plus=style == "+")
        return text.rstrip("0").rstrip(".") if style == "short" and "." in text else text


def decimal(value: float, digits: int = 2, plus: bool = False) -> str:
    """`-0.42`; a zero has no minus sign. `plus` writes `+0.31`."""
    text = f"{value:{'+' if plus else ''}.{digits}f}"
    return text.replace("-", "+" if plus else "") if float(text) == 0 else text


def short(value: float) -> str:
    """With as few decimals as two allow: `0.3`, `-1`, `0.42`."""
    text = decimal(value)
    return text.rstrip("0").rstrip(".")


def spelled(value: float, digits: int = 2) -> str:
    """In words, decimals digit by digit: `minus zero point four two`, `one hundred and eight`."""
    text = decimal(value, digits)
    whole, _, fraction = text.removeprefix("-").partition(".")
    words = [_spelled_whole(int(whole)), *(["point"] if fraction else []), *(_DIGITS[int(d)] for d in fraction)]
    return " ".join(["minus", *words] if text.startswith("-") else words)


def _spelled_whole(value: int) -> str:
    """A whole number below a thousand in words."""
    if not value < 1000:
        raise UserError(f"wording: {value} is spelled out below a thousand only")
    hundreds, rest = divmod(value, 100)
    tens, ones = divmod(rest, 10)
    if rest < 10:
        below = _DIGITS[rest]
    elif rest < 20:
        below = _TEENS[rest - 10]
    else:
        below = _TENS[tens - 2] + (f"-{_DIGITS[ones]}" if ones else "")
    if not hundreds:
        return below
    return f"{_DIGITS[hundreds]} hundred" + (f" and {below}" if rest else "")


def side(value: float, positive: str, negative: str) -> str:
    """The word for a number's sign, beside which its size is written without one."""
    return negative if value < 0 else positive


# --- composing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writing:
    """How a number is spelled: a `Quantity` format, and the unit's name behind it."""

    format: str
    unit: str = ""

    def into(self, phrase: str) -> str:
        """The template of a phrase whose numbers are marked `<name>`, or `<|name|>` where only the size is written."""
        phrase = re.sub(r"<\|(\w+)\|>", rf"{{\1:{self.format} size}}{self.unit}", phrase)
        return re.sub(r"<(\w+)>", rf"{{\1:{self.format}}}{self.unit}", phrase)


@dataclass(frozen=True)
class Parts:
    """What wordings are composed of. A phrase is one string for each place `{a}`, `{b}`, `{c}`, `{d}` of the frames."""

    frames: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    whole: tuple[str, ...] = ()  # sentences that say all quantities at once; composed with writings only


def compose(parts: Parts, writings: Sequence[Writing], every: int = 1) -> tuple[str, ...]:
    """Templates of the parts, no two alike, always the same.

    Args:
        parts: frames, phrases and whole sentences.
        writings: taken in turn.
        every: a phrase meets every so-manieth frame, so that all phrases meet several frames and the LLM has less to
            read.

    Places are filled in both orders of two strings; of more, in one order, each time another.
    """
    turn, orders = itertools.cycle(writings), itertools.count(step=5)
    templates = [next(turn).into(sentence) for sentence in parts.whole]
    for (i, frame), (j, phrase) in itertools.product(enumerate(parts.frames), enumerate(parts.phrases)):
        if (i - j) % every:
            continue
        writing, permutations = next(turn), tuple(itertools.permutations(phrase))
        if len(phrase) > 2:
            permutations = (permutations[next(orders) % len(permutations)],)
        for strings in permutations:
            templates.append(frame.format(**dict(zip("abcd", map(writing.into, strings), strict=False))))
    return tuple(dict.fromkeys(templates))


def with_asides(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, every other one with a remark that has nothing to do with it, in turn before it and behind it."""
    before, after = itertools.cycle(BEFORE), itertools.cycle(AFTER)
    places = itertools.cycle((str, lambda text: f"{next(before)} {text}", str, lambda text: f"{text} {next(after)}"))
    return tuple(place(template) for place, template in zip(places, templates, strict=False))


@dataclass(frozen=True)
class WordingSet:
    """The wordings of one kind of task parameter, by what they are for.

    train: what training may read. validation: other frames and other phrases, to choose settings by. held_out: other
    frames and phrases again, for the final measurement. unseen_unit: train frames and phrases in a unit that no train
    wording has; unknown_unit: in one that `prompts.units` does not know either; unseen_precision: with a number of
    decimals that no train wording has.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    unseen_unit: tuple[str, ...] = ()
    unknown_unit: tuple[str, ...] = ()
    unseen_precision: tuple[str, ...] = ()


def as_wordings(wordings: WordingSet) -> tuple[Wording, ...]:
    """A family's wordings: those to train on, and those kept from training."""
    return tuple(
        Wording(f"{kind}_{i}", template, held_out=kind == "held_out")
        for kind, templates in (("train", wordings.train), ("held_out", wordings.held_out))
        for i, template in enumerate(templates)
    )
