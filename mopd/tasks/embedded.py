"""The embedded suites science, code and tools: our own questions, problems and requests, shipped with the package.

The rows lie under ``mopd/tasks/data`` as JSON lines. Every row has an id, a difficulty from 1 (easiest) to 5 by our
own grading, and a gold answer that its verifier can compare; the code problems carry a reference solution as well.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mopd.rollouts import Prompt
from mopd.tasks.base import TaskItem
from mopd.tasks.prompts import choice_prompt, function_prompt, tool_prompt

__all__ = ["load_code", "load_science", "load_tools", "read_data"]


def read_data(name: str) -> list[dict[str, Any]]:
    """The rows of ``mopd/tasks/data/{name}.jsonl``, in file order."""
    text = resources.files("mopd.tasks").joinpath("data", f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load_science(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """Four-option questions on biology, chemistry, physics, earth science and materials, school to first year."""
    return [
        _item(
            "science",
            row,
            prompt=choice_prompt(row["question"], row["options"]),
            verifier="choice",
            reference={"answer": row["answer"], "options": len(row["options"])},
            topic=row["topic"],
        )
        for row in _chosen(read_data("science"), limit, seed)
    ]


def load_code(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """Python functions to write, from one-liners to small algorithms, each with at least five tests."""
    return [
        _item(
            "code",
            row,
            prompt=function_prompt(row["signature"], row["description"], row["tests"][0]),
            verifier="code",
            reference={"kind": "function", "entry_point": row["id"], "tests": row["tests"]},
            topic="functions",
        )
        for row in _chosen(read_data("code"), limit, seed)
    ]


def load_tools(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """Requests that one or two calls of a small API answer; the request determines every argument."""
    apis = {api["name"]: api["functions"] for api in read_data("tool_apis")}
    return [
        _item(
            "tools",
            row,
            prompt=tool_prompt(apis[row["api"]], row["request"]),
            verifier="tool_call",
            reference={"calls": row["calls"]},
            topic=row["api"],
        )
        for row in _chosen(read_data("tools"), limit, seed)
    ]


def _chosen(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """At most ``limit`` rows in seeded order, so that every prefix is a fair sample of topics and difficulties."""
    if limit is not None and limit < 0:
        raise ValueError(f"the number of prompts must be at least 0, got {limit}")
    random.Random(seed).shuffle(rows)
    return rows[:limit]


def _item(
    task: str,
    row: Mapping[str, Any],
    *,
    prompt: Prompt,
    verifier: str,
    reference: Mapping[str, Any],
    topic: str,
) -> TaskItem:
    return TaskItem(
        item_id=f"{task}-{row['id']}",
        task=task,
        prompt=prompt,
        verifier=verifier,
        reference=reference,
        metadata={"difficulty": row["difficulty"], "topic": topic, "source": "mopd"},
    )
