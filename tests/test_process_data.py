"""ProcessBench and PRM800K rows of the published schemas, with texts of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mopd.localisation import STEPS
from mopd.process_data import read_process_data
from mopd.tasks.rows import TaskDataError


def processbench(label: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": "gsm8k-0",
        "generator": "some-model",
        "problem": "How much are 3 and 4, doubled?",
        "steps": ["3 + 4 = 7", "7 * 2 = 15", "The answer is 15."],
        "final_answer_correct": label == -1,
        "label": label,
    } | changes


def prm_step(*ratings: int | None, chosen: int | None = 0, human: object = None, text: str = "step") -> dict[str, Any]:
    return {
        "completions": [{"text": f"{text} {i}", "rating": r, "flagged": None} for i, r in enumerate(ratings)],
        "human_completion": human,
        "chosen_completion": chosen,
    }


def prm800k(steps: Sequence[Mapping[str, Any]], reason: str = "found_error") -> dict[str, Any]:
    return {
        "labeler": "a",
        "timestamp": "2023-01-01T00:00:00",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": "Find x.", "ground_truth_answer": "1", "pre_generated_steps": ["step 0"]},
        "label": {"steps": list(steps), "total_time": 1, "finish_reason": reason},
    }


def written(path: Path, *rows: object) -> Path:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_processbench_by_hand(tmp_path: Path) -> None:
    right = processbench(-1, steps=["3 + 4 = 7", "7 * 2 = 14"])
    data = read_process_data(written(tmp_path, processbench(1), right, processbench(1)))
    assert data.bad == ()
    assert data.rollouts["response"].to_list() == [
        "3 + 4 = 7\n\n7 * 2 = 15\n\nThe answer is 15.",
        "3 + 4 = 7\n\n7 * 2 = 14",
    ]
    assert data.rollouts["success"].to_list() == [False, True]
    assert data.rollouts["group_id"].n_unique() == 1  # one problem, one group
    assert dict(data.steps.schema) == STEPS
    first = data.rollouts["rollout_id"][0]
    assert [row[1:] for row in data.steps.rows() if row[0] == first] == [
        ("processbench", 0, 0, 9, False),
        ("processbench", 1, 11, 21, True),
        ("processbench", 2, 23, 40, None),  # after the first error nobody looked
    ]
    texts = dict(data.rollouts.select("rollout_id", "response").iter_rows())
    for rollout_id, _, i, start, end, _ in data.steps.rows():
        text = texts[rollout_id]
        assert text[start:end] == text.split("\n\n")[i]


def test_prm800k_by_hand(tmp_path: Path) -> None:
    found = prm800k([prm_step(0), prm_step(1, 0, chosen=1), prm_step(0, -1, -1, chosen=None)])
    solved = prm800k([prm_step(1), prm_step(-1, chosen=None, human={"text": "by hand"}), prm_step(None)], "solution")
    data = read_process_data(written(tmp_path, found, solved))
    assert data.rollouts["response"].to_list() == ["step 0\n\nstep 1\n\nstep 1", "step 0\n\nby hand\n\nstep 0"]
    assert data.rollouts["success"].to_list() == [False, True]
    assert data.steps["wrong"].to_list() == [False, False, True, False, False, None]


def test_a_wrong_step_that_was_chosen_ends_the_solution(tmp_path: Path) -> None:
    data = read_process_data(written(tmp_path, prm800k([prm_step(1), prm_step(-1), prm_step(1)], "solution")))
    assert data.steps["wrong"].to_list() == [False, True]
    assert data.rollouts["success"].to_list() == [False]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (processbench(3), "label must be from -1 to 2"),
        (processbench(True), "label must be"),
        (processbench(0, steps=[]), "list of steps"),
        (processbench(0, steps=["a", 3, "b"]), "text that is not empty"),
        (processbench(0, final_answer_correct="yes"), "true or false"),
        (prm800k([prm_step(1)], "give_up"), "ended with 'give_up'"),
        (prm800k([prm_step(1)], "bad_problem"), "ended with 'bad_problem'"),
        (prm800k([prm_step(7)]), "rating must be"),
        (prm800k([prm_step(chosen=2)]), "not of the format"),
        (prm800k([]), "list of steps"),
        ({"question": {"problem": "?"}}, "not of the format"),
        ({"prompt": "?"}, "neither ProcessBench"),
        ("text", "expected a JSON object"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path: Path, row: object, reason: str) -> None:
    data = read_process_data(written(tmp_path, row, processbench(1)))
    assert data.rollouts.height == 1
    (bad,) = data.bad
    assert bad.line == 1
    assert reason in bad.reason


def test_a_file_without_solutions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match="holds no annotated solution.*neither ProcessBench"):
        read_process_data(written(tmp_path, {"prompt": "?"}))
    with pytest.raises(TaskDataError, match="no file"):
        read_process_data(tmp_path / "absent.jsonl")
