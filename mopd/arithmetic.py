"""Plain arithmetic as exact numbers: tokens in, a rational of sympy out, with work bounded by construction.

A number has at most ``MOST_DIGITS`` digits, an exponent is at most ``MOST_EXPONENT``, and a value of more than
``MOST_BITS`` bits is not computed. ``mopd.equations`` cuts a text into tokens and finds the sides of its equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "OPERATORS",
    "Exact",
    "Reading",
    "Refused",
    "Token",
    "Unjudged",
    "calculates",
    "last_place",
    "number_of",
    "value_of",
]

MOST_DIGITS = 40
MOST_EXPONENT = 64
MOST_BITS = 2048

Exact = Any
"""A ``sympy.Rational``; what its operators return is typed too loosely to be checked."""

OPERATORS = {
    **dict.fromkeys(("+",), "+"),
    **dict.fromkeys(("-", "−", "–"), "-"),
    **dict.fromkeys(("*", "×", "·", "⋅", "∙", "\\times", "\\cdot", "\\ast", "x", "X"), "*"),
    **dict.fromkeys(("/", "÷", "\\div"), "/"),
    **dict.fromkeys(("^", "**"), "^"),
}


class Refused(Exception):
    """The tokens are not arithmetic that can be read."""


class Unjudged(Exception):
    """The tokens are arithmetic whose value is not computed."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text: ``number``, ``operator``, ``percent``, ``fraction``, ``root``, ``open``, ``close``, and others
    that are no arithmetic."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How marks are read that people write in more than one way; the defaults are the rules of mathematics.

    Attributes:
        percent_dropped: ``30% + 20%`` is 50, not a half.
        percent_of_sum: ``50 - 10%`` is 45.
        sign_first: ``-2^2`` is 4.
        powers_from_left: ``2^3^2`` is 64.
        dots_group: ``1.500`` is fifteen hundred.
        binary: ``101`` is five; other digits are refused.
    """

    percent_dropped: bool = False
    percent_of_sum: bool = False
    sign_first: bool = False
    powers_from_left: bool = False
    dots_group: bool = False
    binary: bool = False


STRICT = Reading()


def value_of(tokens: Sequence[Token], reading: Reading = STRICT) -> Exact:
    """The value of all tokens.

    Raises:
        Refused: they are no arithmetic.
        Unjudged: its value is not computed.
    """
    return _Reader(tokens, reading).value()


def calculates(side: Sequence[Token]) -> bool:
    """Whether the tokens, at least one, are more than a signed number."""
    return any(t.kind in ("operator", "fraction", "root") for t in side[1:]) or side[0].kind in ("fraction", "root")


def number_of(text: str) -> Exact:
    """A decimal number without a sign.

    Raises:
        Unjudged: it has too many digits.
    """
    from sympy import Rational

    plain = text.replace(",", "")
    if len(plain) > MOST_DIGITS:
        raise Unjudged
    whole, _, decimals = plain.partition(".")
    return Rational(int(whole + decimals), 10 ** len(decimals))


def last_place(side: Sequence[Token], *, approximately: bool) -> Exact | None:
    """What one more in the last place of a number is worth; None for a whole number that is meant to be exact."""
    from sympy import Rational

    text = next(t.text for t in side if t.kind == "number")
    whole, _, decimals = text.partition(".")
    scale: Exact = Rational(1, 100) if side[-1].kind == "percent" else Rational(1)
    if decimals:
        return scale / 10 ** len(decimals)
    if not approximately:
        return None
    plain = whole.replace(",", "")
    return scale * 10 ** (len(plain) - len(plain.rstrip("0")))  # "about 1200" is known to the hundreds


class _Reader:
    """Recursive descent over the tokens of one side; values are exact rationals.

    sum: term ((+|-) term)*; term: factor ((*|/) factor | factor in parentheses)*; factor: sign factor | power;
    power: atom (^ factor)?; atom: number %? | ( sum ) | fraction | root.
    """

    def __init__(self, tokens: Sequence[Token], reading: Reading) -> None:
        self.tokens, self.reading, self.place = tokens, reading, 0

    def value(self) -> Exact:
        value = self._sum()
        if self.place != len(self.tokens):
            raise Refused
        return value

    def _peek(self) -> str:
        """Kind of the next token, an operator as its sign; empty at the end."""
        if self.place == len(self.tokens):
            return ""
        token = self.tokens[self.place]
        return OPERATORS[token.text] if token.kind == "operator" else token.kind

    def _take(self, *wanted: str) -> Token:
        if self._peek() not in wanted:
            raise Refused
        self.place += 1
        return self.tokens[self.place - 1]

    def _sum(self) -> Exact:
        value = self._term()
        while self._peek() in ("+", "-"):
            sign = OPERATORS[self._take("+", "-").text]
            began = self.place
            term = self._term()
            if self.reading.percent_of_sum and [t.kind for t in self.tokens[began : self.place]] == [
                "number",
                "percent",
            ]:
                term = value * term
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def _term(self) -> Exact:
        value = self._factor()
        divided = False
        while self._peek() in ("*", "/", "open", "fraction", "root"):
            if self._peek() in ("*", "/"):
                divided = OPERATORS[self._take("*", "/").text] == "/"
                factor = self._factor()
            else:
                if divided or self.tokens[self.place - 1].kind == "percent":
                    raise Refused  # 6 / 2(1 + 2) is read in two ways, and 7 % (2) is a remainder in programs
                if self._peek() == "fraction" and self.tokens[self.place - 1].kind == "number":
                    raise Unjudged  # 2\frac{1}{2} is two and a half, or one
                factor = self._power()
                value = _bounded(value * factor)
                continue
            if divided and factor == 0:
                raise Unjudged
            value = _bounded(value / factor if divided else value * factor)
        return value

    def _factor(self) -> Exact:
        if self._peek() in ("+", "-"):
            sign = OPERATORS[self._take("+", "-").text]
            if self.reading.sign_first and sign == "-" and self._peek() == "number":
                return self._raised_by_what_follows(-self._atom())
            return self._factor() if sign == "+" else -self._factor()
        return self._power()

    def _power(self) -> Exact:
        return self._raised_by_what_follows(self._atom())

    def _raised_by_what_follows(self, base: Exact) -> Exact:
        if self._peek() != "^":
            return base
        self._take("^")
        if not self.reading.powers_from_left:
            return _raised(base, self._factor())
        negative = self._peek() == "-"
        if negative:
            self._take("-")
        exponent = self._atom()
        return self._raised_by_what_follows(_raised(base, -exponent if negative else exponent))

    def _atom(self) -> Exact:
        token = self._take("number", "open", "fraction", "root")
        if token.kind == "number":
            value = self._number(token.text)
            if self._peek() == "percent":
                self._take("percent")
                value = value if self.reading.percent_dropped else value / 100
            return value
        if token.kind == "open":
            return self._closed(token)
        if token.kind == "root":
            return _raised(self._group(), number_of("1") / 2)
        above, below = self._group(), self._group()
        if below == 0:
            raise Unjudged
        return _bounded(above / below)

    def _number(self, text: str) -> Exact:
        whole, dot, decimals = text.partition(".")
        if self.reading.binary:
            if not set(text) <= {"0", "1"} or len(text) > MOST_DIGITS:
                raise Refused
            return number_of(str(int(text, 2)))
        if self.reading.dots_group and dot and len(decimals) == 3:
            return number_of(whole + decimals)
        return number_of(text)

    def _group(self) -> Exact:
        """What stands in the next pair of brackets; a number alone needs none."""
        if self._peek() == "number":
            return self._number(self._take("number").text)
        return self._closed(self._take("open"))

    def _closed(self, opening: Token) -> Exact:
        value = self._sum()
        if self._take("close").text != {"(": ")", "{": "}"}[opening.text]:
            raise Refused
        return value


def _raised(base: Exact, exponent: Exact) -> Exact:
    """A power with a small exponent, or a root of a small number that has a rational one."""
    from sympy import Rational

    if abs(exponent) > MOST_EXPONENT or (not base and exponent <= 0):
        raise Unjudged
    if exponent.q == 1:
        if max(base.p.bit_length(), base.q.bit_length()) * abs(exponent.p) > MOST_BITS:
            raise Unjudged
        return base**exponent
    if base < 0 or exponent.q > 4 or max(base.p.bit_length(), base.q.bit_length()) > 64:
        raise Unjudged
    value: Exact = base**exponent
    if not isinstance(value, Rational):
        raise Unjudged
    return _bounded(value)


def _bounded(value: Exact) -> Exact:
    if max(abs(value.p).bit_length(), value.q.bit_length()) > MOST_BITS:
        raise Unjudged
    return value
