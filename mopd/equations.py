"""Find the equations ``a op b = c`` in a text and judge each, without ever evaluating text.

The text is hostile: a model may write anything. It is cut into tokens by one linear pattern, and a small parser
(``mopd.arithmetic``) turns what stands on both sides of a sign of equality into exact rational numbers of sympy. Work
is bounded by construction, so that no time limit is needed: at most ``MOST_CHARACTERS`` are read and
``MOST_EQUATIONS`` judged, and a side has at most ``MOST_TOKENS`` tokens. What goes over a limit is *not judged* (null),
never wrong.

An equation is judged only where both sides are plain arithmetic: letters, functions, factorials, units between the
numbers, operators in words ("5 times 3 + 2") and cut-off sides leave it out. In a chain ``a = b = c`` each sign of
equality is one step, and the span of a later one begins at its sign. A decimal number that cannot be exact may be
rounded or truncated (``20 / 3 = 6.67``); one that can must be (``0.1 + 0.2 = 0.31`` is false). After ``≈`` any number
may be. A false one that may say something else (a range, a date, a bullet, binary numbers) is not judged either:
``mopd.readings``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mopd.arithmetic import OPERATORS, Refused, Token, Unjudged, calculates, last_place, value_of
from mopd.readings import MOST_TOKENS, doubtful, of_other_arithmetic

__all__ = ["Equation", "equations_in"]

MOST_CHARACTERS = 200_000
MOST_EQUATIONS = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """One sign of equality between two sides of arithmetic, at least one of which has an operator.

    Attributes:
        start, end: characters of the step; in a chain a later step begins at its sign of equality.
        holds: whether it is true; None if it is beyond the limits, divides by zero, has no rational value, or would be
            false but may say something else.
        value_start, value_end: characters of the number that the right side is, without its sign; None if it is more.
    """

    start: int
    end: int
    holds: bool | None
    value_start: int | None = None
    value_end: int | None = None


_PATTERN = re.compile(
    r"(?P<hexadecimal>(?<![\w.])0[xX][0-9A-Fa-f]+)"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"|(?P<newline>[\n\r]+|\\\\)"
    r"|(?P<skip>[ \t\u00a0\u202f]+|\\[,;:!()\[\] ]|\\?\$|\\(?:left|right|displaystyle|d?boxed|fbox)(?![a-zA-Z])|[&€£])"
    r"|(?P<approx>≈|≃|\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])|~=)"
    r"|(?P<equals>(?<![=<>!:+\-*/~])=(?![=>]))"
    r"|(?P<operator>\*\*|[-+*/^×÷·⋅∙−–]|\\(?:times|cdot|div|ast)(?![a-zA-Z]))"
    r"|(?P<percent>\\?%|(?:per ?cent|pct)\b)"
    r"|(?P<fraction>\\[dt]?frac(?![a-zA-Z]))"
    r"|(?P<root>\\sqrt(?![a-zA-Z])|√)"
    r"|(?P<open>[({])"
    r"|(?P<close>[)}])"
    r"|(?P<word>\\?[^\W\d_]+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_SIDE = frozenset({"number", "operator", "percent", "fraction", "root", "open", "close"})
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "log", "ln", "lg", "exp", "sqrt", "abs", "max", "min", "mod", "gcd", "lcm"}
)
_LATEX_AFTER = frozenset(
    {"\\text", "\\mathrm", "\\quad", "\\qquad", "\\implies", "\\Rightarrow", "\\rightarrow", "\\to"}
)
_DOUBLING = frozenset({"half", "twice", "double", "triple", "thrice"})
_JOINING = frozenset({"times", "plus", "minus", "over", "of", "by"})
_PARTS = frozenset({"half", "third", "quarter", "fifth", "tenth", "divided", "multiplied"})
_GOING_ON = frozenset(
    {"times", "plus", "minus", "divided", "multiplied", "over", "squared", "cubed"}
    | {"dozen", "hundred", "thousand", "million", "billion", "trillion", "lakh", "crore", "mil", "mn", "bn"}
    | {"factorial", "choose", "am", "pm"}
)
_REPEATING = frozenset({"\\overline", "\\bar", "\\dot"})
_REMAINDER = frozenset({"remainder", "rem", "r", "mod", "modulo"})


def equations_in(text: str) -> list[Equation]:
    """The equations of a text, in order.

    ``=`` in code (``==``, ``<=``, ``+=``), definitions (``x = 4``) and comparisons of two bare numbers are none.
    """
    text = text[:MOST_CHARACTERS]
    tokens = _tokens(text)
    other: bool | None = None  # known once it is needed
    found: list[Equation] = []
    chained_to = -1
    for i, token in enumerate(tokens):
        if token.kind not in ("equals", "approx"):
            continue
        try:
            left, right = _left(tokens, i), _right(tokens, i)
        except Refused:
            continue
        if not (calculates(left) or calculates(right)):
            continue
        equation = _judged(left, token, right, chained=chained_to == i)
        if equation is None:
            continue
        if equation.holds is False and (
            (other := of_other_arithmetic(text) if other is None else other)
            or doubtful(text, tokens, i, left, right, token.kind == "equals")
        ):
            equation = replace(equation, holds=None)
        found.append(equation)
        chained_to = tokens.index(right[-1], i) + 1
        while chained_to < len(tokens) and tokens[chained_to].kind == "skip":
            chained_to += 1
        if len(found) == MOST_EQUATIONS:
            break
    return found


def _tokens(text: str) -> list[Token]:
    tokens = [Token(m.lastgroup or "other", m[0], m.start(), m.end()) for m in _PATTERN.finditer(text)]
    for i, token in enumerate(tokens):
        if token.text in ("x", "X") and _ends_value(_beside(tokens, i, -1)) and _begins_value(_beside(tokens, i, 1)):
            tokens[i] = Token("operator", token.text, token.start, token.end)
    return tokens


def _beside(tokens: Sequence[Token], i: int, step: int) -> Token | None:
    """The next token that is not blank, to the right or to the left."""
    i += step
    while 0 <= i < len(tokens) and tokens[i].kind == "skip":
        i += step
    return tokens[i] if 0 <= i < len(tokens) else None


def _begins_value(token: Token | None) -> bool:
    return token is not None and token.kind in ("number", "open", "fraction", "root")


def _ends_value(token: Token | None) -> bool:
    return token is not None and token.kind in ("number", "close", "percent")


def _left(tokens: Sequence[Token], equals: int) -> list[Token]:
    """What stands left of the sign, back to a word, the line's beginning, or another sign of equality."""
    side: list[Token] = []
    depth, i = 0, equals - 1
    while i >= 0 and (tokens[i].kind in _SIDE or tokens[i].kind == "skip"):
        token = tokens[i]
        if token.kind == "open" and depth == 0:
            break
        depth += (token.kind == "close") - (token.kind == "open")
        if token.kind != "skip":
            side.append(token)
            if len(side) > MOST_TOKENS:
                raise Refused
        i -= 1
    side.reverse()
    before = tokens[i] if i >= 0 else None
    if before is not None and before.kind == "open":
        outer = _beside(tokens, i, -1)  # "3 * (2 + 1 = 9" is cut out of something larger
        if outer is not None and (outer.kind in _SIDE or (outer.kind == "word" and outer.end == before.start)):
            raise Refused
    if depth:
        side = _without_number(side, before)
    if before is not None and _goes_on_before(before, _beside(tokens, i, -1), side):
        raise Refused
    return _begun(side, before)


def _goes_on_before(before: Token, outer: Token | None, side: Sequence[Token]) -> bool:
    """Whether words or marks join the side to what stands before it: "5 times 3 + 2", "half of 8 + 2", "[3 + 4]*2"."""
    word = before.text.lower()
    joined = bool(side) and before.end == side[0].start
    if before.kind == "word":
        after_value = outer is not None and (_ends_value(outer) or outer.text.lower() in _PARTS)
        mixed = word == "and" and len(side) > 2 and side[1].text == "/"  # "3 and 1/2"; else a word between clauses
        return word in _DOUBLING or (after_value and (word in _JOINING or mixed))
    if before.text == "]":
        return joined
    return before.text == ":" and joined and outer is not None and outer.kind == "number" and outer.end == before.start


def _without_number(side: list[Token], before: Token | None) -> list[Token]:
    """The side without the number of a list item, ``1)``, at the beginning of a line."""
    numbered = len(side) > 2 and side[0].kind == "number" and side[1].text == ")"
    if not (numbered and (before is None or before.kind == "newline")):
        raise Refused
    return side[2:]


def _begun(side: list[Token], before: Token | None) -> list[Token]:
    """The side without a bullet or emphasis before it, if it begins where it seems to."""
    if not side:
        raise Refused
    first = side[0]
    if first.kind == "operator":
        rest = side[1:]
        touches = bool(rest) and rest[0].start == first.end
        line_start = before is None or before.kind == "newline"
        if OPERATORS[first.text] in "+-" and touches:
            if before is not None and before.kind == "word" and before.end == first.start:
                raise Refused
        elif (first.text in "-*+" and line_start and not touches) or (first.text in ("*", "**") and touches):
            side = rest
        else:
            raise Refused
    if before is not None and not _may_precede(before, side):
        raise Refused
    if not side:
        raise Refused
    return side


def _may_precede(before: Token, side: Sequence[Token]) -> bool:
    """Whether the arithmetic may begin after this token: not after a variable, a function, or half of a number."""
    if before.kind == "word":
        plain = before.text not in ("a", "A", "I") and len(before.text) == 1
        joined = bool(side) and before.end == side[0].start
        return not (plain or joined or before.text.lower() in _FUNCTIONS or before.text.startswith("\\"))
    joined = bool(side) and before.end == side[0].start
    return not (before.kind == "other" and (before.text in "!_|<>\\@" or (joined and before.text in ".,'")))


def _right(tokens: Sequence[Token], equals: int) -> list[Token]:
    """What stands right of the sign, up to a word, the line's end, or another sign of equality."""
    side: list[Token] = []
    opened: list[tuple[int, int]] = []  # places of parentheses in the side and in the tokens
    i = equals + 1
    while i < len(tokens) and (tokens[i].kind in _SIDE or tokens[i].kind == "skip"):
        token = tokens[i]
        if token.kind == "close" and not opened:
            break
        if token.kind == "open":
            opened.append((len(side), i))
        elif token.kind == "close":
            opened.pop()
        if token.kind != "skip":
            side.append(token)
            if len(side) > MOST_TOKENS:
                raise Refused
        i += 1
    after = tokens[i] if i < len(tokens) else None
    if opened:  # "= 7 (because ...": what is in the parenthesis is prose
        end, place = opened[0]
        inside = _beside(tokens, place, 1)
        if end == 0 or side[end - 1].kind in ("operator", "fraction", "root"):
            raise Refused
        if inside is not None and inside.text.lower() in _REMAINDER:
            raise Refused
        after, side = side[end], side[:end]
    return _ended(side, after, tokens[i + 1] if i + 1 < len(tokens) else None)


def _ended(side: list[Token], after: Token | None, then: Token | None) -> list[Token]:
    """The side without emphasis or a dash after it, if it ends where it seems to."""
    if not side:
        raise Refused
    last = side[-1]
    if last.kind == "operator":
        touches = len(side) > 1 and side[-2].end == last.start
        dash = OPERATORS[last.text] == "-" and after is not None and after.kind == "word" and len(after.text) > 1
        if not ((last.text in ("*", "**") and touches) or (dash and not touches)):
            raise Refused
        side = side[:-1]
        if not side:
            raise Refused
        after = None
    if after is not None and not _may_follow(after, side[-1], then):
        raise Refused
    return side


def _may_follow(after: Token, last: Token, then: Token | None) -> bool:
    """Whether the arithmetic may end before this token: not before a variable, a word that goes on with it ("times",
    "remainder", "million"), or half of a number."""
    joined = after.start == last.end
    if after.kind == "word":
        if after.text.startswith("\\"):
            return after.text in _LATEX_AFTER
        plain = len(after.text) == 1 and (joined or after.text not in ("a", "A", "I"))
        return not plain and after.text.lower() not in _REMAINDER | _GOING_ON
    if after.kind == "other" and joined:
        digits = then is not None and then.start == after.end and (then.kind == "number" or then.text in _REPEATING)
        number_goes_on = after.text in ".,:" and digits
        return after.text not in "!_|\\" and not number_goes_on
    return after.text != "\\"


def _judged(left: Sequence[Token], sign: Token, right: Sequence[Token], *, chained: bool) -> Equation | None:
    numbers = [t for t in right if t.kind == "number"]
    value = numbers[0] if len(numbers) == 1 and not calculates(right) else None
    try:
        holds = _agree(left, right, approximately=sign.kind == "approx")
    except Unjudged:
        holds = None
    except Refused:
        return None
    return Equation(
        start=sign.start if chained else left[0].start,
        end=right[-1].end,
        holds=holds,
        value_start=None if value is None else value.start,
        value_end=None if value is None else value.end,
    )


def _agree(left: Sequence[Token], right: Sequence[Token], *, approximately: bool) -> bool:
    both = [value_of(side) for side in (left, right)]
    if both[0] == both[1]:
        return True
    for side, shown, exact in ((right, both[1], both[0]), (left, both[0], both[1])):
        kinds = [t.kind for t in side]
        if kinds == ["number", "percent"] and shown * 100 == exact:
            return True  # "5 / 20 * 100 = 25%"
        if kinds in (["number"], ["number", "percent"], ["operator", "number"]):
            unit = last_place(side, approximately=approximately)
            if unit is not None and (approximately or (exact / unit).q != 1):
                return bool(abs(exact - shown) < unit)
    return False
