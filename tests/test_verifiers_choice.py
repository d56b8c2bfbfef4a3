from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.verifiers.choice import extract_letter, judge


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<answer>C</answer>", "C"),
        ("<answer>\nC\n</answer>", "C"),
        ("<answer>c</answer>", "C"),
        ("<answer>C. mitochondria</answer>", "C"),
        ("<answer>(C) mitochondria</answer>", "C"),
        ("<answer>C: 2.49</answer>", "C"),
        ("<answer>C. vitamin A</answer>", "C"),
        ("<answer>The answer is C</answer>", "C"),
        ("<answer>option C</answer>", "C"),
        ("A or B at first, but <answer>C</answer>", "C"),
        ("<answer>A</answer> no: <answer>C</answer>", "C"),
        ("So \\boxed{C}.", "C"),
        ("\\boxed{\\text{(C)}}", "C"),
        ("$\\boxed{\\textbf{C}}$", "C"),
        ("C", "C"),
        ("c", "C"),
        ("**C**", "C"),
        ("(C)", "C"),
        ("C.", "C"),
        ("C. mitochondria", "C"),
        ("C) mitochondria", "C"),
        ("**C. mitochondria**", "C"),
        ("Answer: (C)", "C"),
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: C**", "C"),
        ("The answer is C because A is an enzyme.", "C"),
        ("The answer is A because it is.", "A"),
        ("The answer is A.", "A"),
        ("The answer is (A) a protein", "A"),
        ("The correct option is **D**: cells", "D"),
        ("The correct answer is option B.", "B"),
        ("The correct answer is: \\(B\\)", "B"),
        ("I would choose Z", "Z"),
        ("The answer is A. Wait, the answer is B.", "B"),
        ("Reasoning about A.\n\nThe final answer is $\\boxed{B}$", "B"),
        ("Because of heat.\n\nC", "C"),
        ("<think>A it is, <answer>A</answer></think>The answer is B", "B"),
    ],
)
def test_one_letter_is_found(response: str, letter: str) -> None:
    assert extract_letter(response) == letter


@pytest.mark.parametrize("letter", ["A", "B", "I"])
@pytest.mark.parametrize(
    "response",
    [
        "The correct answer is {} (14).",
        'The answer is {} "14".',
        "The answer is {} \u201c14\u201d",
        "The answer is {} 14.",
        "The answer is {} 14.5%",
        "The answer is {} $14$.",
        "The answer is {} \\(14\\).",
        "The answer is {} = 14.",
        "The answer is {} (a cell) because it divides.",
        "Option {} is correct.",
        "Adding up, option {} (14) is the correct answer.",
        "**Option {}** is **correct**.",
        "Seven twice is 14. Therefore, {}.",
        "Seven twice is 14.\nThus, option {} (14)",
        "<answer>Option {} is correct.</answer>",
    ],
)
def test_a_letter_that_is_also_a_word_is_read_like_the_others(response: str, letter: str) -> None:
    assert extract_letter(response.format(letter)) == letter


@pytest.mark.parametrize(
    "response",
    [
        "",
        "The answer is A (large) protein.",
        'The answer is A "large" protein.',
        "The answer is A 14-year-old boy.",
        "The answer is A 14.5 km road.",
        "The answer is a (14).",
        "Option A is correct. Option B is correct.",
        "Option B is not correct.",
        "I wonder whether option B is correct.",
        "Option B is correct only at night.",
        "Therefore, A protein.",
        "Therefore, A or B.",
        "Therefore, I think so.",
        "A or B",
        "<answer>A or B</answer>",
        "<answer>A, B</answer>",
        "<answer>A/B</answer>",
        "The answer is A or B.",
        "The answer is A and B",
        "The answer is (A) or (B).",
        "The answer is A protein.",
        "A protein is made of amino acids.",
        "The answer is I think unclear.",
        "I do not know.",
        "A. one\nB. two\nC. three\nD. four",
        "The answer is not B",
        "<answer>mitochondria</answer>",
        "<answer></answer>",
        "<think>The answer is B",
        "The answer is DNA",
    ],
)
def test_no_single_letter_is_no_answer(response: str) -> None:
    assert extract_letter(response) is None
    verdict = judge(response, {"answer": "B", "options": 4})
    assert (verdict.reward, verdict.answer) == (0.0, None)


def test_a_restated_option_is_its_letter_if_the_texts_are_known() -> None:
    reference = {"answer": "B", "options": ["Golgi apparatus", "The mitochondria", "DNA"]}
    assert judge("<answer>the mitochondria.</answer>", reference).reward == 1.0
    assert judge("<answer>Golgi apparatus</answer>", reference).answer == "A"
    assert judge("<answer>the nucleus</answer>", reference).answer is None


def test_a_wrong_letter_fails_without_naming_the_right_one() -> None:
    verdict = judge("<answer>C</answer>", {"answer": "B", "options": 4})
    assert (verdict.reward, verdict.answer) == (0.0, "C")
    assert "B" not in str(verdict.feedback)


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"answer": "BC"},
        {"answer": 1},
        {"answer": ""},
        {"answer": "E", "options": 4},
        {"answer": "A", "options": 27},
    ],
)
def test_a_malformed_reference_is_refused(reference: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"choice reference|options"):
        judge("A", reference)


@given(st.text(max_size=300))
def test_no_text_makes_it_raise(text: str) -> None:
    letter = extract_letter(text)
    assert letter is None or letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@given(
    st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    st.sampled_from(["<answer>{}</answer>", "\\boxed{{{}}}", "({})", "**{}**", "Answer: {}"]),
)
def test_every_letter_is_read_in_every_wrapping(letter: str, wrapping: str) -> None:
    assert extract_letter(wrapping.format(letter)) == letter
