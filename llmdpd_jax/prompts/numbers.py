"""Numbers in a description, read exactly: the numeric channel that stands beside the LLM's states.

A small frozen LLM blurs digits; task parameters are digits. So they are parsed, in figures (signs, decimals,
exponents, fractions, thousands) or spelled out in English, and their values are written at the tokens that spell them.
What is not a quantity stays unread: digits inside names ("v2", "task_3"), dimensions ("2-D"), ordinals ("3rd"), unit
exponents ("m/s^2", "m s-1"), dotted versions ("1.2.3").
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.units import Unit, read_unit

LARGEST = float(np.finfo(np.float32).max)

DASHES = "-−–‐‑﹣－"  # hyphens, minus, en dash: each may be a sign or may join
OPENING = "([{<>=:;,/*|~≈±'\""  # what may stand right before a sign

_FIGURES = re.compile(
    r"""
    (?<![A-Za-z0-9_^]) (?<![0-9][.])             # not inside a name, a version or an exponent
    (?:
      (?P<fraction> (?: [0-9]+ \s )? [0-9]+ / [0-9]+ ) (?! [0-9]*[./] [0-9] )   # 3/4, 2 1/2
      |
      (?P<power_of_ten> 10 (?: (?: \^ | \*\* ) [-+−]? [0-9]+ | [⁻⁺]? [⁰¹²³⁴-⁹]+ ) )
      |
      (?:
        (?<! [(\[] ) [1-9][0-9]{0,2} (?:,[0-9]{3})+ (?! [0-9] | ,[0-9] ) (?:\.[0-9]+)?   # 1,250.5, but not "(3,250)"
        | [0-9]+ (?:\.[0-9]+)?
        | \.[0-9]+
      )
      (?: [eE] [-+−]? [0-9]+ )?
      (?P<power> \s? [x×*·] \s? 10 (?: (?: \^ | \*\* ) [-+−]? [0-9]+ | [⁻⁺]? [⁰¹²³⁴-⁹]+ ) )?
    )
    (?! \.?[0-9] )
    (?! (?:st|nd|rd|th|[-‐‑]?[dD]|[-‐‑\s]dimensional) \b )       # ordinals and dimensions
    (?! [A-Za-z]* _ | [A-Za-z]+ [0-9] )          # "3d_pose", "2x4"
    """,
    re.VERBOSE,
)
_PLAIN = str.maketrans("−⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "--+0123456789")
_NAME_BEFORE = re.compile(r"[A-Za-z_)\]]\[$")  # a whole number between this and a bracket is an index: "target[0]"
# A digit after these is an exponent: "x^-2", "m s-1".
_EXPONENT_BEFORE = re.compile(rf"(?:\^|\*\*|\b(?:m|cm|mm|km|s|h|min|sec|kg|N|rad|deg))[{DASHES}]$")

_DIGITS = {
    "zero": 0, "nought": 0, "naught": 0, "nil": 0, "one": 1, "two": 2, "three": 3, "four": 4,
    "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
}  # fmt: skip
_TEENS = {
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_THOUSANDS = {"thousand": 1000, "million": 1_000_000}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fifth": 5, "fifths": 5,
    "tenth": 10, "tenths": 10, "hundredth": 100, "hundredths": 100, "thousandth": 1000, "thousandths": 1000,
}  # fmt: skip
_PLURAL_PARTS = {part for part in _PARTS if part.endswith("s")}
_SIGN_WORDS = {"minus": -1, "negative": -1, "plus": 1, "positive": 1}
_NOT_QUANTITIES = {"dimensional", "legged", "shot", "armed", "way"}  # "two-dimensional", "zero-shot"
_POINTING = {"the", "this", "that", "each", "every", "any", "no", "which", "another", "only", "some"}  # "the one that"
_STARTS = {*_DIGITS, *_TEENS, *_TENS, *_SIGN_WORDS, "half", "a", "oh", "o"}  # begin spelled numbers
_SIGNS_OF_ONE = _STARTS - {"a", "oh", "o"} | {"quarter", "hundred"}  # one of them is in every spelled number
_WORD = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]+(?![A-Za-z0-9_])")
_JOIN = re.compile(r"\s+|[-‐‑]")
_SIGN_BEFORE = re.compile(rf"\b(minus|negative|plus|positive)[{DASHES}\s]+$", re.IGNORECASE)


PLACEHOLDER = "1"  # stands for any number where numbers are hidden; a word that every LLM reads as a number


@dataclass(frozen=True)
class Number:
    """A number in a text; text[start:end] spells it, its sign included."""

    value: float
    start: int
    end: int
    unit: Unit | None = None  # named behind it; the value is then in the SI unit


def read_numbers(text: str, units: bool = True) -> list[Number]:
    """The numbers in a text, from left to right, in metres, metres per second and radians where such a unit is named.

    Without `units` the values are those in the text.

    A dash is a sign only at the start of a number that follows a space, an opening bracket or the like: between words
    and in ranges ("0.2-0.5", "0.2 - 0.5") it is not. The words minus and negative are signs.

    Raises: UserError for a number beyond the range of float32.
    """
    numbers = sorted([*_read_figures(text), *_read_words(text)], key=lambda number: number.start)
    if units:
        numbers = _in_si_units(text, numbers)
    for number in numbers:
        if not abs(number.value) <= LARGEST:
            raise UserError(
                f"description {text!r}: the number {text[number.start : number.end]!r} is beyond the range of float32"
            )
    return numbers


def hide_numbers(text: str, units: bool = True) -> tuple[str, list[Number]]:
    """The text with PLACEHOLDER for every number, and the numbers with the places of their placeholders.

    A reader of the result learns what the numbers mean but not what they are, so it cannot know a task by its digits.
    With `units` the values are those in SI units, and the text names these: "7.2 km/h" becomes "1 m/s", so that a
    sentence reads the same in whatever unit it was written.
    """
    pieces, numbers, at, length = [], [], 0, 0

    def add(piece: str) -> None:
        nonlocal length
        pieces.append(piece)
        length += len(piece)

    for number in read_numbers(text, units):
        add(text[at : number.start])
        numbers.append(Number(number.value, length, length + len(PLACEHOLDER)))
        add(PLACEHOLDER)
        at = number.end
        if number.unit is not None:
            between = text[at : number.unit.start]
            add((between if between[:1] in (")", "]") else " ") + number.unit.name)
            at = number.unit.end
    add(text[at:])
    return "".join(pieces), numbers


def spelling_tokens(text: str, numbers: Sequence[Number], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which number of a text each of its tokens helps to spell.

    Args:
        text: the description.
        numbers: from `read_numbers(text)` or with `text` from `hide_numbers`; only their places count.
        offsets: L pairs (start, end), the characters of `text` that each token covers. A token that covers nothing but
            white space within a number's characters does not count as spelling it.

    Returns: [L] int32, the number's place in `numbers`, or -1.
    """
    index = np.full(len(offsets), -1, np.int32)
    for i, number in enumerate(numbers):
        for token, (start, end) in enumerate(offsets):
            if text[max(start, number.start) : min(end, number.end)].strip():
                index[token] = i
    return index


def values_at(numbers: Sequence[Number], index: np.ndarray) -> np.ndarray:
    """Values [L] float32 of the numbers that tokens spell, by `spelling_tokens`; 0 where the index is -1."""
    return np.array([*(number.value for number in numbers), 0.0], np.float32)[index]


# What joins numbers that share the unit behind the last: "(31, 42) cm", "2 to 3 km/h".
_LIST = re.compile(r"\s?(?:[,;/|x×–-]|,?\s(?:and|or|to|by))\s?", re.IGNORECASE)


def _in_si_units(text: str, numbers: list[Number]) -> list[Number]:
    """The numbers with the units named behind them, their values converted."""
    converted: list[Number] = []
    after = None  # the number behind, and the unit it has or shares
    for number in reversed(numbers):
        unit = shared = read_unit(text, number.end)
        if unit is None and after is not None and _LIST.fullmatch(text, number.end, after[0].start):
            shared = after[1]
        value = number.value if shared is None else number.value * shared.factor
        converted.append(Number(value, number.start, number.end, unit))
        after = number, shared
    return converted[::-1]


def _read_figures(text: str) -> list[Number]:
    numbers = []
    for match in _FIGURES.finditer(text):
        if _EXPONENT_BEFORE.search(text, 0, match.start()):
            continue
        if (
            match.group().isdigit()
            and _NAME_BEFORE.search(text, 0, match.start())
            and text.startswith("]", match.end())
        ):
            continue
        figures = match.group().replace(",", "").translate(_PLAIN)
        if match.group("fraction"):
            *whole, above, below = map(int, re.split(r"[\s/]", figures))
            if below == 0:
                continue
            value = sum(whole) + above / below
        elif match.group("power") or match.group("power_of_ten"):
            mantissa, exponent = re.split(r"\s?[x×*·]?\s?10(?:\^|\*\*)?(?=[-+]?[0-9]+$)", figures)
            value = float(f"{mantissa or 1}e{exponent}")
        else:
            value = float(figures)
        sign, start = _sign_before(text, match.start())
        numbers.append(Number(sign * value, start, match.end()))
    return numbers


def _sign_before(text: str, start: int) -> tuple[int, int]:
    """Sign of the number whose figures begin at `start`, and where the number begins with its sign."""
    word = _SIGN_BEFORE.search(text[:start])
    if word:
        twice = re.search(rf"\s[{DASHES}]$", word.group())  # "plus -0.5"
        return (-1 if twice else 1) * _SIGN_WORDS[word.group(1).lower()], word.start()
    mark = text[:start].rstrip(" ")
    if not mark or mark[-1] not in DASHES + "+":
        return 1, start
    before = mark[:-1]
    if before.endswith("+/"):  # "+/-0.5" is a size
        return 1, start
    if len(mark) < start:  # a space after the dash: a sign only where nothing stands to be joined, as in "x = - 0.5"
        is_sign = before.rstrip(" ").endswith(("=", "(", "[", ","))
    elif before and before[-1] in DASHES:  # "-0.5--0.2": the first dash joins, the second is a sign
        is_sign = before[-2:-1].isdigit()
    else:
        is_sign = not before or before[-1].isspace() or before[-1] in OPENING
    if not is_sign:
        return 1, start
    return (1 if mark[-1] == "+" else -1), len(before)


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    end: int
    joined: bool  # only white space or a hyphen lies between it and the word before


def _split_words(text: str) -> list[_Word]:
    words: list[_Word] = []
    for match in _WORD.finditer(text):
        gap = text[words[-1].end : match.start()] if words else "."
        joined = gap == " " or _JOIN.fullmatch(gap) is not None
        words.append(_Word(match.group().lower(), match.start(), match.end(), joined))
    return words


def _read_words(text: str) -> list[Number]:
    """Numbers spelled out in English."""
    # Most texts spell no number, and most words begin none: there are thousands of texts, so those are passed over.
    if _SIGNS_OF_ONE.isdisjoint(map(str.lower, _WORD.findall(text))):
        return []
    words = _split_words(text)
    numbers, i = [], 0
    while i < len(words):
        if words[i].text not in _STARTS:
            i += 1
            continue
        phrase = _Phrase(words, i)
        value = phrase.number()
        if value is None:
            i += 1
            continue
        numbers.append(Number(value, words[i].start, words[phrase.at - 1].end))
        i = phrase.at
    return numbers


class _Phrase:
    """Recursive descent over words from `at`; every rule returns None and consumes nothing where it does not apply."""

    def __init__(self, words: list[_Word], at: int):
        self.words, self.first, self.at = words, at, at

    def peek(self, ahead: int = 0) -> str | None:
        """The word `ahead` places on, or None where punctuation or the end of the text cuts the phrase."""
        place = self.at + ahead
        if place >= len(self.words):
            return None
        if any(not word.joined for word in self.words[max(self.at, self.first + 1) : place + 1]):
            return None
        return self.words[place].text

    def take(self, table: dict[str, int]) -> int | None:
        word = self.peek()
        if word not in table:
            return None
        self.at += 1
        return table[word]

    def number(self) -> float | None:
        start = self.at
        sign = self.take(_SIGN_WORDS)
        value = self.unsigned(signed=sign is not None)
        if value is None or self.names_something(start):
            self.at = start
            return None
        return value if sign is None else sign * value

    def names_something(self, start: int) -> bool:
        """Whether the words since `start` are part of a name or a pronoun rather than a quantity."""
        if self.peek() in _NOT_QUANTITIES:
            return True
        if self.at - start > 1 or self.words[start].text != "one":
            return False
        before = self.words[start - 1].text if start and self.words[start].joined else None
        return before in _POINTING or self.peek() in ("of", "another", "or")

    def unsigned(self, signed: bool) -> float | None:
        if self.peek() == "half" and self.peek(1) in ("a", "an"):
            self.at += 1
            return 0.5
        if self.peek() == "a" and self.peek(1) in ("half", "quarter"):
            self.at += 1
            return 1 / self.take(_PARTS)
        if self.peek() in ("oh", "o") and self.peek(1) == "point":
            self.at += 1
            whole = 0
        else:
            whole = self.cardinal()
        if whole is None and not signed:
            return None
        if self.peek() == "point" and (digits := self.decimals()):
            return float(f"{whole or 0}.{digits}")
        if whole is None:
            return None
        # "three quarters", but "one third of" and not "two third parties": one takes the singular, others the plural.
        word = self.peek()
        if word in _PARTS and (whole == 1) != word.endswith("s"):
            return whole / self.take(_PARTS)
        if word == "and" and self.peek(1) == "a" and self.peek(2) in ("half", "quarter"):
            self.at += 2
            return whole + 1 / self.take(_PARTS)
        if (
            word == "and" and _DIGITS.get(self.peek(1), 0) > 1 and self.peek(2) in _PLURAL_PARTS
        ):  # "two and three fifths"
            self.at += 1
            return whole + self.take(_DIGITS) / self.take(_PARTS)
        return float(whole)

    def cardinal(self) -> int | None:
        """Whole numbers: "twenty-one", "two hundred and five", "three thousand two hundred"."""
        total, group = 0, self.below_thousand()
        if group is None:
            return None
        while (scale := self.take(_THOUSANDS)) is not None:
            total += group * scale
            start = self.at
            group = self.after_and(self.below_thousand)
            if group is None or _THOUSANDS.get(self.peek(), 0) >= scale:  # "two thousand three thousand": two numbers
                self.at = start
                return total
        return total + group

    def below_thousand(self) -> int | None:
        if self.peek() == "a" and self.peek(1) == "hundred":
            self.at += 1
            value = 1
        else:
            value = self.below_hundred()
        if value is None or self.peek() != "hundred":
            return value
        self.at += 1
        start = self.at
        rest = self.after_and(self.below_hundred)
        if rest is None or self.peek() == "hundred":  # "between one hundred and two hundred": two numbers
            self.at, rest = start, 0
        return 100 * value + rest

    def after_and(self, rule: Callable[[], int | None]) -> int | None:
        if self.peek() == "and":
            self.at += 1
        return rule()

    def below_hundred(self) -> int | None:
        if (tens := self.take(_TENS)) is not None:
            word = self.peek()
            return tens + (self.take(_DIGITS) if _DIGITS.get(word, 0) > 0 else 0)
        teen = self.take(_TEENS)
        return teen if teen is not None else self.take(_DIGITS)

    def decimals(self) -> str:
        """Digits after "point": one by one, or "thirty-one" for 31. Empty, nothing consumed, where none follow."""
        start, digits = self.at, ""
        self.at += 1
        while True:
            before = self.at
            if self.peek() in ("oh", "o"):
                self.at += 1
                digits += "0"
                continue
            part = self.below_hundred()
            # A digit followed by another point, or by "hundred", begins the next number.
            if part is None or (digits and self.peek() in ("point", "hundred", *_THOUSANDS)):
                self.at = before if digits else start
                return digits
            digits += str(part)
