"""The checker of equations: what it reads, what it leaves, and that no text gets the better of it."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd import equations
from mopd.equations import equations_in


def judged(text: str) -> list[tuple[str, bool | None]]:
    return [(text[e.start : e.end], e.holds) for e in equations_in(text)]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("3 + 4 = 7", True),
        ("3+4=8", False),
        ("-4 + 3 = -1", True),
        ("2 + 3 * 4 = 14", True),
        ("(2 + 3) * 4 = 20", True),
        ("2 * 3^2 = 18", True),
        ("-2^2 = -4", True),
        ("2^3^2 = 512", True),  # from the right: 2^9
        ("2**3 = 8", True),
        ("2^-1 = 0.5", True),
        ("7 - 2 - 1 = 4", True),  # from the left
        ("8 / 2 / 2 = 2", True),
        ("3 x 4 = 12", True),
        ("12 ÷ 4 = 3", True),
        ("3 \\times 4 = 12", True),
        ("\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}", True),
        ("\\sqrt{16} + 1 = 5", True),
        ("1,000 + 2 = 1,002", True),
        ("2(3 + 4) = 14", True),
        ("50 * 20% = 10", True),
        ("50 / 200 = 25%", True),
        ("5 / 20 * 100 = 25%", True),
        ("20 / 3 = 6.67", True),  # rounded
        ("20 / 3 = 6.66", True),  # truncated
        ("20 / 3 = 6.68", False),
        ("0.1 + 0.2 = 0.31", False),  # 0.3 can be exact, so it must be
        ("10 / 3 = 3", False),
        ("10 / 3 ≈ 3", True),
        ("1234 + 1 ≈ 1200", True),
        ("1234 + 1 ≈ 1300", True),  # within one hundred
        ("1234 + 1 ≈ 1400", False),
        ("9 = 4 + 5", True),
        ("5 / 0 = 0", None),
        ("0^0 = 1", None),
        ("9**9**9 = 3", None),
        ("\\sqrt{2} * 1 = 1.41", None),
    ],
)
def test_an_equation_is_judged(text: str, holds: bool | None) -> None:
    assert judged(text) == [(text, holds)]


@pytest.mark.parametrize(
    ("text", "equation"),
    [
        ("So 3 + 4 = 7, which is odd.", "3 + 4 = 7"),
        ("1) 3 + 4 = 7", "3 + 4 = 7"),
        ("2. 3 + 4 = 7", "3 + 4 = 7"),
        ("- 4 + 3 = 7", "4 + 3 = 7"),
        ("**3 + 4 = 7**", "3 + 4 = 7"),
        ("(3 + 4 = 7)", "3 + 4 = 7"),
        ("3 + 4 = 7 (as 4 + 3)", "3 + 4 = 7"),
        ("3 + 4 = 7 - and done", "3 + 4 = 7"),
        ("x = 3 + 4 = 7", "3 + 4 = 7"),
        ("12 / 4 = 3 apples", "12 / 4 = 3"),
        ("\\( 3 + 4 = \\boxed{7} \\)", "3 + 4 = \\boxed{7}"),
        ("one line: 4 * 6\nand 5 - 1 = 4\n", "5 - 1 = 4"),
    ],
)
def test_prose_and_markup_around_it_are_left(text: str, equation: str) -> None:
    assert [found for found, _ in judged(text)] == [equation]


@pytest.mark.parametrize(
    "text",
    [
        "x = 4",
        "4 = 4",
        "x + 4 + 3 = 7",
        "3x + 4 = 7",
        "3 + 4 = 7x",
        "3 + 4 = 7 + x",
        "y - 4 + 3 = 7",
        "f(3) + 4 = 7",
        "sin 3 + 4 = 7",
        "5! = 120",
        "3 * 2 = 3!",
        "17 / 5 = 3 remainder 2",
        "6 / 2(1 + 2) = 9",
        "3 * (2 + 1 = 9",
        "|3 - 5| = 2",
        "1 + 1 = 2,5",
        "3 apples + 4 apples = 7 apples",
        "if a == 3 + 4:",
        "3 + 4 <= 7",
        "n += 3 + 4",
        "3 + 4 =",
        "3 + 4 = 7 +",
        "2 3 + 4 = 7",
        "4 * 6\n= 24",
        "20% of 50 + 5 = 15",
        "5 times 3 + 2 = 17",
        "5 divided by 2 + 1 = 3.5",
        "half of 8 + 2 = 6",
        "twice 3 + 1 = 7",
        "3 and 1/2 + 1 = 4.5",
        "8:30 + 45 = 9",
        "[3+4]*2+1 = 15",
        "17 = 3 * 5 plus 2",
        "6 + 3 = 3 times 3",
        "3 * 5 = 1 (mod 7)",
        "3 + 4 = 7 hundred",
    ],
)
def test_what_is_no_plain_arithmetic_is_not_judged(text: str) -> None:
    assert judged(text) == []


def test_a_chain_has_a_step_for_each_sign() -> None:
    assert judged("4 - 0 = 4 * 1 = 5.") == [("4 - 0 = 4 * 1", True), ("= 5", False)]


def test_the_number_on_the_right_is_found() -> None:
    text = "so 3 - 4 = -1 and 2 + 2 = 2 * 2"
    first, second = equations_in(text)
    assert (first.value_start, first.value_end) == (text.index("1 and"), text.index("1 and") + 1)
    assert (second.value_start, second.value_end) == (None, None)


@st.composite
def arithmetic(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """A fully bracketed expression and its value by the fractions of the standard library."""
    if depth == 0 or draw(st.booleans()):
        whole, places = draw(st.integers(0, 999)), draw(st.integers(0, 2))
        text = f"{whole / 10**places:.{places}f}"
        return text, Fraction(text)
    (left, a), (right, b) = draw(arithmetic(depth - 1)), draw(arithmetic(depth - 1))
    sign = draw(st.sampled_from("+-*/" if b else "+-*"))
    value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[sign]()
    return f"({left} {sign} {right})", value


@given(arithmetic(), st.integers(-5, 5))
def test_expressions_have_the_value_that_fractions_give(expression: tuple[str, Fraction], off: int) -> None:
    text, value = expression
    claimed = value + off
    line = f"{text} * 1 = {claimed.numerator} / {claimed.denominator}"
    assert judged(line) == [(line, off == 0)]


@settings(max_examples=300)
@given(st.text(alphabet="0123456789+-*/^=≈x().,%{}$\\fracsqrt \n!ab", max_size=80) | st.text(max_size=60))
def test_no_text_raises_and_spans_lie_in_it(text: str) -> None:
    end = 0
    for equation in equations_in(text):
        assert 0 <= equation.start < equation.end <= len(text)
        assert equation.end > end
        end = equation.end
        if equation.value_start is not None and equation.value_end is not None:
            assert equation.start <= equation.value_start < equation.value_end <= equation.end


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "1=1+1",
        "1+" * 50_000 + "1=2",
        "9**" * 20 + "9=1",
        "9^(9^9)=1",
        "9^64^64=1",
        ("9" * 40 + "^64*") * 10 + "1=1",
        "9" * 100_000 + "+1=2",
        "=" * 200_000,
        "1=1+1" * 40_000,
        "-" * 200_000 + "1=1+1",
        "$" * 200_000 + "1+1=2",
        ("(" * 30 + "1" + ")" * 30 + "+1=2 ") * 4_000,
        "1+1=2 " * 100_000,
        "√" * 60 + "16=2",
        "2^(1/2)*" * 12 + "1=1",
    ],
)
def test_hostile_text_costs_little(text: str) -> None:
    began = time.perf_counter()
    found = equations_in(text)
    assert len(found) <= equations.MOST_EQUATIONS
    # about a second of work at most; ten leave room for a loaded machine, and a bomb would take far longer
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        "the sum of 3 + 4 = 7",
        "and 3 + 4 = 7",
        "n = 3: 3 + 4 = 7",
        "[1] 3 + 4 = 7",
        "3 + 4 = 7 (because)",
        "by 3 + 4 = 7",
    ],
)
def test_words_that_join_nothing_are_no_hindrance(text: str) -> None:
    assert [(e.holds, text[e.start : e.end]) for e in equations_in(text)] == [(True, "3 + 4 = 7")]
