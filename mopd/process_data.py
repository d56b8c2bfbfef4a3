"""Solutions with annotated steps: ProcessBench and PRM800K files as rollouts and steps.

* ProcessBench (Zheng et al., arXiv 2412.06559): ``problem``, ``steps`` (texts), ``label`` (place of the earliest wrong
  step from 0, -1 if none), ``final_answer_correct``, ``generator``, ``id``. Steps after the first error have no label.
* PRM800K (Lightman et al., arXiv 2305.20050): ``question.problem`` and ``label.steps``, each with rated ``completions``
  (-1 wrong, 0 neutral, 1 right), ``chosen_completion`` or ``human_completion``. The solution is the chosen path; where
  none was chosen, the last step is the first wrong completion, after which nothing was labelled. Neutral is not wrong.
  Screening and quality-control lines are kept, lines whose problem or solution was given up are not.

Solutions of one problem are a group, so that they can be one another's peers. A PRM800K solution without an error is a
success if it was labelled to its end (``finish_reason`` solution); one with an error is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mopd.localisation import STEPS
from mopd.rollouts import content_id, validate_rollouts
from mopd.tasks.rows import BadRow, TaskDataError, read_local

__all__ = ["ProcessData", "read_process_data"]

BETWEEN = "\n\n"
"""Stands between two steps of a response."""


@dataclass(frozen=True, kw_only=True)
class ProcessData:
    """Annotated solutions: a checked table of rollouts, their steps (``mopd.localisation.STEPS``), rows left out."""

    rollouts: pl.DataFrame
    steps: pl.DataFrame
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Solution:
    problem: str
    steps: Sequence[str]
    wrong: Sequence[bool | None]
    success: bool | None
    source: Literal["processbench", "prm800k"]


def read_process_data(path: str | Path) -> ProcessData:
    """Read a ProcessBench or PRM800K file (JSON lines, a JSON list, or parquet); the rows say which it is.

    Solutions with the same problem and text are taken once.

    Raises:
        TaskDataError: the file cannot be read, or no row of it is a solution.
    """
    file = Path(path)
    found: dict[str, dict[str, Any]] = {}
    steps: list[tuple[Any, ...]] = []
    bad: list[BadRow] = []
    for number, row in read_local(file):
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.reason)
            solution = _solution(row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"not of the format: {error!r}"
            bad.append(BadRow(source=str(file), line=number, reason=reason))
            continue
        rollout = _rollout(solution)
        if rollout["rollout_id"] not in found:
            found[rollout["rollout_id"]] = rollout
            steps += _step_rows(rollout["rollout_id"], solution)
    if not found:
        first = f"; the first: {bad[0]}" if bad else ""
        raise TaskDataError(f"{file} holds no annotated solution of ProcessBench or PRM800K{first}")
    frame = validate_rollouts(pl.DataFrame(list(found.values())))
    return ProcessData(rollouts=frame, steps=pl.DataFrame(steps, schema=STEPS, orient="row"), bad=tuple(bad))


def _solution(row: Mapping[str, Any]) -> _Solution:
    """Read a row of either format.

    Raises:
        ValueError: it is of neither, or incomplete.
    """
    if isinstance(row.get("question"), Mapping):
        return _prm800k(row)
    if "problem" in row and "steps" in row and "label" in row:
        return _processbench(row)
    raise ValueError(f"neither ProcessBench (problem, steps, label) nor PRM800K (question, label); got {sorted(row)}")


def _processbench(row: Mapping[str, Any]) -> _Solution:
    steps, label = _texts(row["steps"]), row["label"]
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise ValueError(f"label must be from -1 to {len(steps) - 1} for {len(steps)} steps, got {label!r}")
    correct = row.get("final_answer_correct")
    if correct is not None and not isinstance(correct, bool):
        raise ValueError(f"final_answer_correct must be true or false, got {correct!r}")
    wrong = [False] * len(steps) if label < 0 else [*[False] * label, True, *[None] * (len(steps) - label - 1)]
    return _Solution(problem=_text(row["problem"]), steps=steps, wrong=wrong, success=correct, source="processbench")


def _prm800k(row: Mapping[str, Any]) -> _Solution:
    label = row["label"]
    reason = label.get("finish_reason")
    if reason not in ("solution", "found_error"):
        raise ValueError(f"labelling ended with {reason!r}, so the solution has no verdict")
    steps: list[str] = []
    wrong: list[bool | None] = []
    for step in label["steps"]:
        text, rating = _chosen(step)
        steps.append(text)
        wrong.append(None if rating is None else rating < 0)
        if wrong[-1]:
            break
    success = reason == "solution" and True not in wrong
    return _Solution(
        problem=_text(row["question"]["problem"]),
        steps=_texts(steps),
        wrong=wrong,
        success=success,
        source="prm800k",
    )


def _chosen(step: Mapping[str, Any]) -> tuple[str, int | None]:
    """Text and rating of a step on the labelled path; a step that a person wrote is right."""
    completions = step.get("completions") or []
    place = step.get("chosen_completion")
    if place is None:
        written = step.get("human_completion")
        if written is not None:
            return _text(written["text"] if isinstance(written, Mapping) else written), 1
        ratings = [c.get("rating") for c in completions]
        place = next((i for i, rating in enumerate(ratings) if rating == -1), 0)
    chosen = completions[place]
    rating = chosen.get("rating")
    if rating not in (-1, 0, 1, None):
        raise ValueError(f"a rating must be -1, 0, 1 or null, got {rating!r}")
    return _text(chosen["text"]), rating


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text that is not empty, got {value!r:.80}")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"expected a list of steps, got {values!r:.80}")
    return [_text(value) for value in values]


def _rollout(solution: _Solution) -> dict[str, Any]:
    response = BETWEEN.join(solution.steps)
    return {
        "group_id": content_id(solution.source, solution.problem),
        "rollout_id": content_id(solution.source, solution.problem, response),
        "task": solution.source,
        "prompt": [{"role": "user", "content": solution.problem}],
        "response": response,
        "finished": None,
        "reward": None if solution.success is None else float(solution.success),
        "success": solution.success,
        "source": solution.source,
    }


def _step_rows(rollout_id: str, solution: _Solution) -> list[tuple[Any, ...]]:
    rows, start = [], 0
    for i, (text, wrong) in enumerate(zip(solution.steps, solution.wrong, strict=True)):
        rows.append((rollout_id, solution.source, i, start, start + len(text), wrong))
        start += len(text) + len(BETWEEN)
    return rows
