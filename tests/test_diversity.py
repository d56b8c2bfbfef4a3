"""Diversity measures against values worked by hand."""

from __future__ import annotations

import math
from itertools import combinations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.diversity import (
    answer_entropy,
    ast_distance,
    distinct_n,
    edit_distance,
    group_diversity,
    mean_at_k,
    pass_at_k,
    python_nodes,
    self_bleu,
    summarise_diversity,
    unique_ratio,
)
from mopd.rollouts import ROLLOUT_SCHEMA


def frame_of(rows: list[tuple[str, str, bool | None, str | None]]) -> pl.DataFrame:
    """Rollouts from (group, response, success, answer)."""
    records = [
        {
            "group_id": group,
            "rollout_id": f"{index}",
            "task": "math" if group != "c" else "code",
            "prompt": [{"role": "user", "content": "?"}],
            "response": response,
            "success": success,
            "answer": answer,
        }
        for index, (group, response, success, answer) in enumerate(rows)
    ]
    return pl.DataFrame(records, schema=ROLLOUT_SCHEMA, orient="row")


def test_distinct_n_is_cut_to_the_shortest_response() -> None:
    # cut to 3 words: "a b a", "a b c" -> unigrams a b a a b c: {a, b, c} of 6; bigrams ab ba ab bc: 3 of 4
    responses = ["a b a z z z z", "a b c"]
    assert distinct_n(responses, 1) == pytest.approx(3 / 6)
    assert distinct_n(responses, 2) == pytest.approx(3 / 4)


def test_distinct_n_does_not_reward_a_longer_copy() -> None:
    assert distinct_n(["a b", "a b"], 1) == distinct_n(["a b x y z", "a b"], 1) == 0.5


def test_distinct_n_at_a_fixed_length_leaves_shorter_responses_out() -> None:
    # at 2 words: "a b", "a c" -> a b a c: 3 of 4; the third has one word only
    assert distinct_n(["a b x", "a c", "q"], 1, match_length=2) == pytest.approx(3 / 4)
    assert distinct_n(["a b x", "q"], 1, match_length=2) is None


@pytest.mark.parametrize("responses", [[], ["a b"], ["", "a b"]])
def test_distinct_n_is_undefined(responses: list[str]) -> None:
    assert distinct_n(responses, 2) is None


def test_self_bleu_of_copies_and_of_strangers() -> None:
    same = ["the cat sat on the mat today"] * 3
    assert self_bleu(same) == pytest.approx(1.0)
    strangers = self_bleu(["one two three four five", "six seven eight nine ten"])
    assert strangers is not None
    assert strangers < 0.1
    assert self_bleu(["alone"]) is None


def test_unique_ratio_ignores_white_space() -> None:
    assert unique_ratio(["a  b", "a b\n", "c"]) == pytest.approx(2 / 3)
    assert unique_ratio([]) is None


def test_edit_distance() -> None:
    # kitten -> sitting: 3 edits over 7 characters
    assert edit_distance(["kitten", "sitting"]) == pytest.approx(3 / 7)
    # pairs: abc-abc 0, abc-abd 1/3 twice -> mean 2/9
    assert edit_distance(["abc", "abc", "abd"]) == pytest.approx(2 / 9)
    assert edit_distance(["abc"]) is None


def test_ast_distance_sees_shape_and_not_names() -> None:
    first, renamed = "```python\nx = 1\n```", "```python\nlonger_name = 2\n```"
    assert ast_distance([first, renamed]) == 0.0
    # Module Assign Name Store Constant against Module Expr Name Load: length 5, and of the aligned nodes
    # Module and Name stay: one replaced (Assign/Expr), one replaced (Store/Load), one deleted -> 3/5
    assert ast_distance([first, "```python\nx\n```"]) == pytest.approx(3 / 5)


def test_python_nodes_takes_code_and_not_prose() -> None:
    assert python_nodes("x = 1") == ["Module", "Assign", "Name", "Store", "Constant"]
    assert python_nodes("42") is None
    assert python_nodes("The answer is (42") is None
    assert python_nodes("```python\ndef f(:\n```") is None
    assert python_nodes("```cpp\nint x;\n```") is None
    assert python_nodes("```\ny\n```\nand finally\n```python\nx = 1\n```") == python_nodes("x = 1")
    assert python_nodes("x = '\\d'") == python_nodes("x = 1")  # an invalid escape warns elsewhere, not here


def test_ast_distance_is_undefined_below_two_programs() -> None:
    assert ast_distance(["```python\nx = 1\n```", "no code"]) is None


def test_answer_entropy_in_nats() -> None:
    # 3 of 4 and 1 of 4: -(0.75 ln 0.75 + 0.25 ln 0.25) = 0.562335
    assert answer_entropy(["7", "7", " 7 ", "8", None]) == pytest.approx(0.562335, abs=1e-6)
    assert answer_entropy(["a", "b"]) == pytest.approx(math.log(2))
    assert answer_entropy(["a", "a"]) == 0.0
    assert answer_entropy([None]) is None


def test_pass_at_k() -> None:
    # 4 rollouts, 1 success, k = 2: 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    # 8, 3, 4: 1 - C(5,4)/C(8,4) = 1 - 5/70
    assert pass_at_k(8, 3, 4) == pytest.approx(65 / 70)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    assert mean_at_k(4, 1, 2) == 0.25


@pytest.mark.parametrize("estimate", [pass_at_k, mean_at_k])
@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (0, 0, 1)])
def test_k_beyond_the_rollouts_is_refused(estimate: object, n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be from"):
        estimate(n, c, k)  # type: ignore[operator]


def test_pass_at_k_is_the_mean_over_all_draws() -> None:
    labels = [True, False, False, True, False]
    draws = list(combinations(labels, 3))
    assert pass_at_k(5, 2, 3) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_groups_exclude_the_unjudged_and_count_them() -> None:
    frame = frame_of(
        [
            ("a", "x y", True, "1"),
            ("a", "x z", False, "2"),
            ("a", "never seen", None, "3"),
            ("b", "one", None, None),
        ]
    )
    a, b = group_diversity(frame, k=(1, 2, 4)).to_dicts()
    assert (a["n_rollouts"], a["n_unjudged"], a["n_success"], a["n_answers"]) == (3, 1, 1, 2)
    assert a["distinct_1"] == pytest.approx(3 / 4)  # x y x z
    assert a["answer_entropy"] == pytest.approx(math.log(2))
    assert (a["pass_at_1"], a["pass_at_2"], a["pass_at_4"]) == (0.5, 1.0, None)
    assert a["ast_distance"] is None
    assert (b["n_unjudged"], b["success_rate"], b["unique_ratio"], b["pass_at_1"]) == (1, None, None, None)


def test_summary_counts_what_is_undefined() -> None:
    frame = frame_of(
        [
            ("a", "x", True, "1"),
            ("a", "y", True, "1"),
            ("b", "z", True, "1"),
            ("c", "w", False, None),
            ("c", "w", None, None),
        ]
    )
    rows = {(r["task"], r["metric"]): r for r in summarise_diversity(group_diversity(frame, k=(1, 2))).to_dicts()}
    overall = rows[None, "edit_distance"]  # a: "x" to "y" is 1; b and c have one judged rollout
    assert (overall["value"], overall["n_groups"], overall["n_undefined"]) == (1.0, 1, 2)
    assert rows["code", "edit_distance"]["value"] is None
    assert rows[None, "success_rate"]["value"] == pytest.approx(2 / 3)
    assert rows[None, "pass_at_2"]["n_undefined"] == 2


def test_an_empty_table_has_no_groups() -> None:
    groups = group_diversity(frame_of([]))
    assert groups.height == 0
    assert summarise_diversity(groups)["value"].is_null().all()


@given(st.lists(st.text(max_size=40), max_size=5), st.randoms())
def test_measures_are_bounded_and_do_not_depend_on_order(responses: list[str], random: object) -> None:
    shuffled = list(responses)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for measure in (unique_ratio, edit_distance, ast_distance, self_bleu, lambda r: distinct_n(r, 1)):
        value = measure(responses)
        assert value is None or 0.0 <= value <= 1.0
        assert measure(shuffled) == (None if value is None else pytest.approx(value))
