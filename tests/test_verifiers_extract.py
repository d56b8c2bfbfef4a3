from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.verifiers import extract
from mopd.verifiers.choice import extract_letter
from mopd.verifiers.code import extract_code
from mopd.verifiers.tool_call import parse_calls

READERS = [
    extract.after_thinking,
    extract.tagged_answer,
    extract.boxed_answer,
    extract.marked_answer,
    extract.phrase_answer,
    extract.number_in_text,
    extract.text_answer,
    extract.unwrap,
    extract_letter,
    extract_code,
    parse_calls,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize(
    "unit",
    ["*", "_", " ", "\n", "(", "{", "[", '"', "`", "```\n", "$", "1", "1,", "=",
     "answer ", "answer: ", "answer is **",
     "<answer>", "<think>", "\\boxed{", "\\text{",
     "Action: a\n", "Action: a\nAction Input: {", '{"a":', "<tool_call>", "A or "],
)  # fmt: skip
def test_degenerate_repetition_is_read_in_time(reader, unit: str) -> None:
    for prefix in ("", "The answer is ", "answer:", "x = "):
        text = prefix + unit * (20_000 // len(unit))
        began = time.process_time()
        reader(text)
        assert time.process_time() - began < 2.0


@given(st.text(max_size=200) | st.text(alphabet="<answer>/think\\boxed{} =12,.*#\n", max_size=200))
def test_no_text_makes_a_reader_raise(text: str) -> None:
    for reader in READERS:
        reader(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{\\frac{1}{2}} and \\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{3} then \\boxed{}", "3"),
        ("\\boxed 5.", "5"),
        ("\\boxed{open", None),
        ("none", None),
    ],
)
def test_the_last_box_that_holds_something_counts(text: str, answer: str | None) -> None:
    assert extract.boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("**12**", "12"),
        ("$12$.", "12"),
        ("\\(12\\)", "12"),
        ("\\[ 12 \\]", "12"),
        ("`x`", "x"),
        ("\\text{yes}", "yes"),
        ("12!", "12"),
    ],
)
def test_wrapping_is_taken_off(wrapped: str, bare: str) -> None:
    assert extract.unwrap(wrapped) == bare
