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


AMBIGUOUS = [
    # ranges, dates, telephone numbers, scores
    "pages 10-20 = 11",
    "from 10–20 = 11 numbers",
    "the years 1990 - 2000 = 11",
    "Question 5 = 10-12 points",
    "10 / 2 = 4-6",
    "2020-10-20 = 18555",
    "Day 1 = 2020-10-20",
    "20-10-2020 = 294",
    "555-123-4567 = 5",
    "10/20/2020 = 3",
    "6 : 2 + 1 = 4",
    # bullets, labels, numbers of a list
    "- 2 + 3 = 1",  # a minus: -2 + 3
    "-2 + 3 = 5",  # a bullet: 2 + 3
    "1.3 + 4 = 7",
    "1 - 3 + 4 = 7",
    "Step 1 - 3 + 4 = 7",
    "(1) - 3 + 4 = 1",
    "(2) = 3 + 4",
    "Box 2 = 3 + 4",
    "#2 = 3 + 4",
    "No. 2 = 3 + 4",
    "10 choose 3 = 10 * 9 * 8 / 6",
    # another line begins it
    "12\n+ 34 + 10 = 56",
    "100\n- 20 - 30 = 50",
    "100\n-20 - 30 = 50",
    "10 +\n20 + 5 = 35",
    "50\n+ 12\n+ 34 + 1 = 97",
    # other arithmetic
    "In binary, 1 + 1 = 10.",
    "1 + 1 = 10 in base 2",
    "1010 + 110 = 10000",
    "(mod 12): 7 + 8 = 3",
    "XOR: 5 ^ 3 = 6",
    # a word or a value before it belongs to it
    "110 in binary -1 + 2 = 7",
    "3 km +200 * 5 = 4000",
    "5 apples -3 + 2 = 4",
    "the price *3 + 4 = 10",
    "a[0] -2 + 3 = 4",
    "negative 3 + 5 = 2",
    "the square root of 16 + 1 = 5",
    "three quarters of 8 + 2 = 8",
    # percentages
    "100 + 20% = 120",
    "$50 - 10% = $45",
    "30% + 20% = 50",
    "5/20*100% = 25",
    # rounding and remainders
    "6.67 * 3 = 20",
    "0.33 * 300 = 100",
    "0.1 + 0.2 = 0.30000000000000004",
    "100 * 1.1 = 110.00000000000001",
    "10/3 = 3...",
    "Rounding down, 10 / 3 = 3",
    "17 / 5 = 3 with a remainder of 2",
    "17 / 5 = 3, remainder 2",
    "28 \\div 26 = 1 \\text{ remainder } 2",
    "7/2 = 3 and 1/2",
    "7/2 = 3 and a half",
    # conventions
    "1.000 + 500 = 1.500",
    "-2^2 = 4",
    "2^3^2 = 64",
    "1\\frac{1}{2} + 1 = 2.5",
    "2 + 3 = 5 + 4",
    r"\frac{6}{2} = 3 + 4",
    r"\sqrt{9} = 3 + 4",
    r"\frac{1.500}{2} = 750",
    # units
    "0.25 * 4 = 100 cents",
    "3 / 2 = 90 minutes",
    "2 * 3 = 2 groups of 3",
    # not claimed
    "Is 3 + 4 = 8? No.",
    "If 3 + 4 = 8 then pigs fly",
    "3 + 4 = 8 is wrong",
    "it is not true that 3 + 4 = 8",
]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_what_may_be_something_else_is_not_called_false(text: str) -> None:
    found = equations_in(text)
    assert found
    assert [e.holds for e in found] == [None] * len(found)


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8",
        "So 3 + 4 = 8.",
        "The answer is 3 + 4 = 8 apples.",
        "- 2 + 3 = 6",  # neither as a bullet nor as a minus
        "* 3 + 4 = 8",
        "**3 + 4 = 8**",
        "The answer **3 + 4 = 8**",
        "1. 3 + 4 = 8\n2. 8 + 1 = 9",
        "Step 1: 3 + 4 = 8",
        "Step 1 - 3 + 4 = 9",
        "12 = 2^3 \\times 3",
        "the factors are \\(12 = 2^3 \\times 3\\)",
        "so 24 = 4 * 5",
        "3 - 5 = 2",
        "101 + 11 = 111",
        "5\n3 + 4 = 8",
        "20 - 10 = 11",
        "20-10 = 11",
        "15% of them; 50 * 20% = 12",
        "0.1 + 0.2 = 0.31",
        "1.25 * 3 = 3.95",
        "12 / 4 = 4 slices of pizza",
        "the cost of 3 * 4 = 13",
        "17 / 5 = 5 with a remainder of 2",
        "2 + 3 = 6 + 4",
        "5 - 3 = 4 minutes",
        "6 / 2 = 4 left",
    ],
)
def test_a_plain_mistake_is_still_found(text: str) -> None:
    assert False in [e.holds for e in equations_in(text)]


def test_marks_of_other_arithmetic_are_no_equation() -> None:
    assert judged("0x10 + 1 = 17") == []
    assert judged("9 + 5 = 2 pm") == []
    assert judged("8/12 = 2:3") == []
    assert judged("7 % (2) = 1") == []
    assert judged("\\sqrt[3]{8} + 1 = 3") == []
    assert judged("3 + 4 = 7a") == []
    assert judged("1/3 = 0.\\overline{3}") == []


def test_a_comma_or_a_word_ends_a_number() -> None:
    assert judged("1,000 + 200 = 1,200, so") == [("1,000 + 200 = 1,200", True)]
    assert judged("1/5 = 20 percent") == [("1/5 = 20 percent", True)]


NUMBERS = st.integers(0, 60)
"""Of sentences; small ones, so that two readings of a sentence meet often."""


@settings(max_examples=300)
@given(a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_a_true_sentence_is_never_called_false(a: int, b: int, c: int) -> None:
    """Sentences that are true as people mean them, whatever the numbers are."""
    first, last = sorted((a, a + b + 1))
    percent = 5 * b
    for text in (
        f"pages {first}-{last} = {last - first + 1} pages",
        f"the years {1900 + first}–{1900 + last} = {last - first}",
        f"- {a} + {b} = {a + b}",
        f"- {a} + {b} = {b - a}",
        f"Work:\n- {a} + {b} = {a + b}\n- {b} * {c} = {b * c}",
        f"{c}. {a} - {b} = {a - b}",
        f"{c}) {a} - {b} = {a - b}",
        f"({c}) {a} - {b} = {a - b}",
        f"Step {c}: {a} - {b} = {a - b}",
        f"Step {c} - {a} + {b} = {a + b}",
        f"In binary {a:b} + {b:b} = {a + b:b}",
        f"{a:b} in base 2 is {a}, so {a:b} + {b:b} = {a + b:b}",
        f"{a}\n+ {b} + {c} = {a + b + c}",
        f"{a}\n- {b} - {c} = {a - b - c}",
        f"{a} + {b} = {a + b} + {c} = {a + b + c}",
        f"{a} / {b + 1} = {a // (b + 1)} remainder {a % (b + 1)}",
        f"{a} / {b + 1} = {a // (b + 1)} with {a % (b + 1)} left over",
        f"{a} / {b + 1} = {a // (b + 1)} R{a % (b + 1)}",
        f"{a} / {b + 1} is about {a / (b + 1):.0f}, i.e. {a} / {b + 1} = {a / (b + 1):.0f}",
        f"{100 * a} + {percent}% = {100 * a + a * percent}",
        f"${100 * a} - {percent}% = ${100 * a - a * percent}",
        f"({a} + {b}) mod {c + 1} : {a} + {b} = {(a + b) % (c + 1)}",
        f"{a / 100 + 1:.2f} * {b} = {(a / 100 + 1) * b:.2f}",
        f"Group {a} = {b} + {c} people",
        f"minus {a} + {b} = {b - a}",
        f"{a} items +{b} - {c} = {a + b - c}",
    ):
        assert False not in [e.holds for e in equations_in(text)], text


@given(a=NUMBERS, b=st.integers(1, 60), off=st.sampled_from([-11, -10, -2, -1, 1, 2, 10, 11]))
def test_a_false_sum_is_always_found(a: int, b: int, off: int) -> None:
    for text in (f"{a} + {b} = {a + b + off}", f"So {a} * {b} = {a * b + off}.", f"1. {a} - {b} = {a - b + off}\n"):
        assert [e.holds for e in equations_in(text)] == [False], text


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
        "1+1=3 " + "1\n" * 90_000,
        ("1\n" * 60 + "+1+1=3\n\n") * 1_500,
        "1+1=3\n" * 30_000,
        "x if not 1+1=3 of 5 groups of 6 " * 6_000,
        "1.01*" * 30 + "1=5\n",
        ("1.01*" * 30 + "1=5\n") * 1_200,
        ("-" + "2^3^2+30%+" * 6 + "1=5\n") * 2_500,
        ("$" * 180 + "1+1=3\n") * 1_000,
    ],
)
def test_hostile_text_costs_little(text: str) -> None:
    began = time.process_time()
    found = equations_in(text)
    assert len(found) <= equations.MOST_EQUATIONS
    # about a second of work at most; ten leave room for a slow machine, and a bomb would take far longer
    assert time.process_time() - began < 10


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
