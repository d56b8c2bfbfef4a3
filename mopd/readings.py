"""What else an equation may say that is false as plain arithmetic: then it is left unjudged, not called wrong.

A step that is called wrong becomes a *first error*, so a sentence that was never meant as this arithmetic must not be.
An equation is in doubt if

* it holds under another common reading: a dash in front of it as a bullet or as a minus, a label (``Step 1 - ...``) or
  the number of a list before it, the line above as its beginning, a percentage taken off a sum, a percent sign left
  out, a dot that groups thousands, binary digits, ``-2^2`` as 4, ``2^3^2`` as 64, a running result
  (``2 + 3 = 5 + 4 = 9``);
* a side looks like a range (``10-20``), a date or a telephone number;
* decimals were rounded on the way or by a computer, or words of rounding and remainders stand in its line and it holds
  about;
* the text is about other arithmetic (binary, modulo), or the sentence asks, supposes or denies it;
* words before it or after it make something else of a number: ``negative 3``, ``2 groups of 3``, ``100 cents``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mopd.arithmetic import OPERATORS, Exact, Reading, Refused, Token, Unjudged, calculates, last_place, value_of

__all__ = ["doubtful", "of_other_arithmetic"]

MOST_TOKENS = 64
MOST_DECIMALS = 4
"""Decimals of a side that may be taken for rounded ones."""
NEAR = 160
"""Characters before and after an equation that are read for words."""

_OTHER_ARITHMETIC = re.compile(
    r"\b(?:binary|hexadecimal|octal|ternary|boolean|xor|bitwise|modul(?:o|us|ar)|mod|two's complement|concatenat\w*)\b"
    r"|\\[pb]?mod\b|≡|\\equiv\b|\b(?:in|to|from|into|as)\s+base\b|\bbase[-\s](?:2|3|4|8|16|two|three|four|eight|sixteen)\b",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"round|about|approx|rough|around|nearly|almost|estimat|nearest|whole|full|complete|integer|floor|ceil|truncat"
    r"|remainder|remaining|left|quotient|≈|~|//|\.\.\.|…|\\ldots|\\dots",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\s*\)?\s*\$?\s*\?|.*(?:\b(?:not|isn't|doesn't|wrong|false|incorrect|invalid|impossible|contradict\w*|mistake)\b|[✗✘❌])",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppos\w+|assum\w+|whether|unless|not|isn't|wrong\w*|incorrect\w*|mistake\w*|instead|rather)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[\n\r.;!?]")
_GOES_ON = re.compile(
    r"\s*(?:and\s+(?:a|an|one|two|three|\d+\s*/)\b|(?:or|to)\s+\d|:\s*\d|[^\W\d]+\s+(?:[^\W\d]+\s+)?of\s+\d)",
    re.IGNORECASE,
)
_MEASURE = re.compile(
    r"\s*(?:\\(?:text|mathrm)\s*\{\s*)?"
    r"(?:¢|(?:cents?|[mcdk]?m|[mk]?g|[mcd]?l|[mk]?s|h|mins?|hrs?|(?:milli|centi|kilo)?(?:meter|metre|gram|liter|litre)s?"
    r"|seconds?|minutes?|hours?|days?|weeks?|months?|years?|inch(?:es)?|feet|foot|yards?|ounces?|pounds?)\b)",
    re.IGNORECASE,
)
_RATIOS = frozenset({10, 100, 1000, 1_000_000, 3, 7, 12, 16, 24, 30, 36, 52, 60, 365, 1440, 3600})
_LINK = re.compile(
    r"a|all|also|an|and|answer|are|as|be|because|but|by|calculation|check|equals|equation|expression|find|first|gets?|gives?"
    r"|got|ha[dsv]e?|hence|is?|it|know|means?|namely|next|now|or|result|see|since|so|solution|that|the|then|therefore|this"
    r"|thus|verify|was|we|where|which|with|write|yields",
    re.IGNORECASE,
)
"""Words that lead to an equation without being a part of it, as the name of a thing is (``Box 2 = 3 + 4``)."""
_PART_OF = re.compile(
    r"root|square|cube|factorial|value|inverse|reciprocal|opposite|negative|multiples?|log\w*|percent\w*|power|times|double"
    r"|triple|groups?|sets?|hal(?:f|ves)|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?",
    re.IGNORECASE,
)
_CHANGING = frozenset({"negative", "minus", "root", "square", "cube", "factorial", "squared", "cubed", "log", "power"})
_LABELS = frozenset({"no", "nos", "eq", "eqn", "fig", "ex", "q", "ch", "p", "pp", "vol", "sec", "prob", "art"})
FLOATING = 1e-12
"""Relative difference up to which it may be floating-point arithmetic (0.1 + 0.2 = 0.30000000000000004)."""


def of_other_arithmetic(text: str) -> bool:
    """Whether a text is about numbers that are not added as usual: binary, modulo, Boolean."""
    return _OTHER_ARITHMETIC.search(text) is not None


def doubtful(
    text: str, tokens: Sequence[Token], sign: int, left: Sequence[Token], right: Sequence[Token], exact: bool
) -> bool:
    """Whether a false equation may be something else.

    Args:
        text: the whole text.
        tokens: of the text.
        sign: place of the sign of equality among them.
        left, right: the sides as they were read, tokens of arithmetic only.
        exact: whether the sign is ``=``, not ``≈``.
    """
    before = _place_before(tokens, sign, left[0])
    return (
        _counts_a_range(left, right)
        or _is_range_or_date(left)
        or _is_range_or_date(right)
        or _introduced_as_other(tokens, before, left, text[right[-1].end : right[-1].end + 2])
        or _words_around(text, left, right, exact)
        or _running(left, right)
        or any(_holds(left, right, reading) for reading in _conventions([*left, *right]))
        or any(_holds(side, right, Reading()) for side in _other_beginnings(tokens, before, left))
        or _rounded_on_the_way(left, right)
        or _rounded_on_the_way(right, left)
    )


def _place_before(tokens: Sequence[Token], sign: int, first: Token) -> int:
    """The place of the last token before the left side that is no blank; -1 if there is none."""
    i = sign - 1
    while i >= 0 and tokens[i].start >= first.start:
        i -= 1
    return _not_blank(tokens, i)


def _value(side: Sequence[Token], reading: Reading | None = None) -> Exact | None:
    try:
        return value_of(side, reading or Reading())
    except (Refused, Unjudged):
        return None


def _holds(left: Sequence[Token], right: Sequence[Token], reading: Reading) -> bool:
    if not (calculates(left) or calculates(right)):
        return False
    value = _value(left, reading)
    return value is not None and value == _value(right, reading)


def _other_beginnings(tokens: Sequence[Token], before: int, left: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Left sides that begin earlier or later than the one that was read."""
    first = left[0]
    if first.kind == "operator":
        yield left[1:]  # the dash of a list
    elif before >= 0 and tokens[before].kind == "operator" and OPERATORS[tokens[before].text] in "+-":
        yield [tokens[before], *left]  # a minus that was taken for one
    if len(left) > 2 and first.kind == "number" and left[1].kind == "operator" and OPERATORS[left[1].text] == "-":
        yield left[2:]  # Step 1 - ...
    if len(left) > 3 and [t.kind for t in left[:3]] == ["open", "number", "close"]:
        yield left[3:]  # (1) ...
    whole, dot, decimals = first.text.partition(".")
    if first.kind == "number" and whole and dot:
        yield [Token("number", decimals, first.end - len(decimals), first.end), *left[1:]]  # 1.3 + 4
    for above in _with_lines_above(tokens, before):
        yield [*above, *left]


def _conventions(sides: Sequence[Token]) -> Iterator[Reading]:
    """Readings of marks that stand on a side."""
    numbers = [t.text for t in sides if t.kind == "number"]
    if any(t.kind == "percent" for t in sides):
        yield Reading(percent_dropped=True)
        yield Reading(percent_of_sum=True)
    if any(t.kind == "operator" and OPERATORS[t.text] == "^" for t in sides):
        yield Reading(sign_first=True)
        yield Reading(powers_from_left=True)
    if any("." in number for number in numbers):
        yield Reading(dots_group=True)
    if all(set(number) <= {"0", "1"} for number in numbers):
        yield Reading(binary=True)


def _with_lines_above(tokens: Sequence[Token], before: int) -> Iterator[list[Token]]:
    """The arithmetic at the end of the lines above, a line more each time, with the sign that begins the next one."""
    i, above = before, []
    if i >= 0 and tokens[i].kind == "operator":  # a bullet that was left out
        above.append(tokens[i])
        i = _not_blank(tokens, i - 1)
    if i < 0 or tokens[i].kind != "newline":
        return
    arithmetic = ("number", "operator", "percent", "fraction", "root", "open", "close")
    while i >= 0 and len(above) < MOST_TOKENS and tokens[i].kind in (*arithmetic, "skip", "newline"):
        if tokens[i].kind == "newline" and above:
            yield above
        if tokens[i].kind in arithmetic:
            above = [tokens[i], *above]
        i -= 1
    yield above


def _not_blank(tokens: Sequence[Token], i: int) -> int:
    while i >= 0 and tokens[i].kind == "skip":
        i -= 1
    return i


def _running(left: Sequence[Token], right: Sequence[Token]) -> bool:
    """``2 + 3 = 5 + 4``: the right side begins with the result of the left one and goes on with it."""
    if not calculates(left):
        return False
    depth = 0
    for i, token in enumerate(right):
        depth += (token.kind == "open") - (token.kind == "close")
        if i and not depth and token.kind == "operator":
            value = _value(right[:i])
            if value is not None:
                return value == _value(left)
    return False


def _counts_a_range(left: Sequence[Token], right: Sequence[Token]) -> bool:
    """``1990 - 2000 = 11``: how many numbers there are from one to another."""
    if [t.kind for t in left] != ["number", "operator", "number"] or OPERATORS[left[1].text] != "-":
        return False
    first, last, size = _value(left[:1]), _value(left[2:]), _value(right)
    if first is None or last is None or size is None:
        return False
    return bool(first < last and size == last - first + 1)


def _is_range_or_date(side: Sequence[Token]) -> bool:
    """``10-20``, ``2020-10-20``, ``1/2/2020``, ``555-123-4567``: numbers with the same mark between, without blanks."""
    numbers, marks = side[::2], side[1::2]
    if len(side) not in (3, 5) or any(t.kind != "number" or not t.text.isdigit() for t in numbers):
        return False
    if any(t.kind != "operator" for t in marks) or len({t.text for t in marks}) != 1:
        return False
    if any(a.end != b.start for a, b in pairwise(side)):
        return False
    mark, sizes = OPERATORS[marks[0].text], [len(t.text) for t in numbers]
    if len(side) == 3:
        return mark == "-" and int(numbers[0].text) < int(numbers[1].text)
    year = 4 in (sizes[0], sizes[2]) and sorted(sizes)[1] <= 2
    short = max(sizes) <= 2 and (mark == "/" or sizes == [2, 2, 2])
    telephone = sizes == [3, 3, 4]
    ascending = int(numbers[0].text) < int(numbers[1].text)
    return mark in "-/" and (year or short or telephone or (mark == "-" and ascending))


def _introduced_as_other(tokens: Sequence[Token], before: int, left: Sequence[Token], rest: str) -> bool:
    """Whether what stands before the side makes a label or another number of its beginning; ``rest`` is after all."""
    first, bare = left[0], all(t.kind in ("number", "open", "close") for t in left)
    if bare and first.kind == "open":
        return True  # "(2) = 3 + 4" is a number of an equation
    if before < 0:
        return False
    token, outer = tokens[before], tokens[_not_blank(tokens, before - 1)] if before else None
    word, closed = token.text.lower(), rest.startswith(token.text)
    if token.kind == "word":
        if word in _CHANGING:
            return True
        if word == "of":
            return outer is not None and _PART_OF.fullmatch(outer.text) is not None
        formula = any(t.text in ("\\(", "\\[", "$") for t in tokens[before + 1 : before + 4])
        return (bare or first.kind == "operator") and not formula and not _LINK.fullmatch(word)
    if token.kind == "operator" and OPERATORS[token.text] in "*^":  # emphasis, or "the price *3 + 4"
        return outer is not None and outer.kind == "word" and not _LINK.fullmatch(outer.text) and not closed
    if token.text == ":":  # "6 : 2 + 1" is a division in many countries
        return outer is not None and outer.kind == "number" and outer.end < token.start and token.end < first.start
    if token.text in "#№":
        return True
    if bare and token.text == ".":
        return outer is not None and outer.text.lower() in _LABELS
    return first.kind == "operator" and token.text == "]"


def _words_around(text: str, left: Sequence[Token], right: Sequence[Token], exact: bool) -> bool:
    start, end = left[0].start, right[-1].end
    before, after = text[max(0, start - NEAR) : start], text[end : end + NEAR]
    line = before.splitlines()[-1:] if not before.endswith(("\n", "\r")) else []
    line = (line[0] if line else "") + " " + (after.splitlines()[:1] or [""])[0]
    sentence_before = _SENTENCE.split(before)[-1]
    close = _SENTENCE.search(after)
    sentence_after = after if close is None or after.lstrip(") $").startswith("?") else after[: close.start()]
    if _SUPPOSED.search(sentence_before) or _DENIED.match(sentence_after):
        return True
    if exact and _ABOUT.search(line) and _about(left, right):
        return True
    bare = [t.kind for t in right] == ["number"]
    if not bare:
        return False
    return _GOES_ON.match(after) is not None or (_MEASURE.match(after) is not None and _ratio_of_units(left, right))


def _about(left: Sequence[Token], right: Sequence[Token]) -> bool:
    """Whether it holds to the last place that is shown."""
    values = _value(left), _value(right)
    if values[0] is None or values[1] is None:
        return False
    for side in (left, right):
        if [t.kind for t in side] in (["number"], ["number", "percent"], ["operator", "number"]):
            unit = last_place(side, approximately=True)
            if unit is not None and abs(values[0] - values[1]) < unit:
                return True
    return False


def _ratio_of_units(left: Sequence[Token], right: Sequence[Token]) -> bool:
    a, b = _value(left), _value(right)
    if not a or not b:
        return False
    return a / b in _RATIOS or b / a in _RATIOS


def _rounded_on_the_way(side: Sequence[Token], result: Sequence[Token]) -> bool:
    """Whether a number can be what a side with rounded decimals gives: ``6.67 * 3 = 20``, ``0.33 * 300 = 100``.

    The result may be off by half of its last place, and by half of that of every factor of two decimals or more.
    """
    decimal = [i for i, t in enumerate(side) if t.kind == "number" and "." in t.text]
    exact, shown = _value(side), _value(result)
    if exact and shown is not None and abs(shown / exact - 1) < FLOATING:
        return True
    if (
        not 1 <= len(decimal) <= MOST_DECIMALS
        or exact is None
        or shown is None
        or [t.kind for t in result] != ["number"]
    ):
        return False
    whole = "." not in result[0].text
    slack = (last_place(result, approximately=False) or 1) * value_of([Token("number", "0.5", 0, 0)])
    if not whole and not any(t.kind == "operator" and OPERATORS[t.text] in "*/" for t in side):
        return False
    for i in decimal:
        places = len(side[i].text.partition(".")[2])
        if places < 2 or not any(t.kind == "operator" and OPERATORS[t.text] in "*/" for t in side):
            continue
        moved = [*side]
        moved[i] = Token("number", f"{side[i].text}5", side[i].start, side[i].end)
        value = _value(moved)
        slack += 0 if value is None else abs(value - exact)
    return bool(abs(exact - shown) <= slack)
