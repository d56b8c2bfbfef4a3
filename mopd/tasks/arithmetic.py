"""Sums, differences and products of small numbers: what a model of 135M parameters gets right now and then.

Answers take 20 to 50 tokens, so that the quick start and the tests run a real model in minutes on two cores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mopd.rollouts import Prompt
from mopd.tasks.base import TaskItem
from mopd.tasks.puzzles import Puzzle, generate

__all__ = ["DEFAULT_SIZE", "load_arithmetic"]

DEFAULT_SIZE = 60


def _is_sum(entry: Mapping[str, Any]) -> bool:
    return "-" not in entry["metadata"]["expression"]


def _is_difference(entry: Mapping[str, Any]) -> bool:
    return not _is_sum(entry) and int(entry["answer"]) >= 0


def _is_easy_product(entry: Mapping[str, Any]) -> bool:
    return any(factor in "012" for factor in entry["metadata"]["expression"].split(" * "))


def _is_proper_product(entry: Mapping[str, Any]) -> bool:
    return not _is_easy_product(entry)


_TWO_TERMS = {"min_terms": 2, "max_terms": 2}
_ONE_DIGIT = {**_TWO_TERMS, "min_digits": 1, "max_digits": 1}
_TWO_DIGITS = {**_TWO_TERMS, "min_digits": 2, "max_digits": 2}

# Chosen by what SmolLM2-135M does with them: it never gets a negative result, and hardly ever a third term, right.
_PUZZLES = (
    Puzzle(name="easy_product", dataset="products", difficulty=1, settings=_ONE_DIGIT, keep=_is_easy_product),
    Puzzle(name="sum", dataset="chain_sum", difficulty=2, settings=_ONE_DIGIT, keep=_is_sum),
    Puzzle(name="product", dataset="products", difficulty=3, settings=_ONE_DIGIT, keep=_is_proper_product),
    Puzzle(name="difference", dataset="chain_sum", difficulty=4, settings=_ONE_DIGIT, keep=_is_difference),
    Puzzle(name="sum_two_digits", dataset="chain_sum", difficulty=5, settings=_TWO_DIGITS, keep=_is_sum),
)


def load_arithmetic(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """``limit`` items (default 60), an even mix of five kinds.

    Raises:
        ValueError: if ``limit`` is negative or there are not that many distinct problems.
    """
    return generate(
        "arithmetic",
        _PUZZLES,
        _ask,
        size=DEFAULT_SIZE if limit is None else limit,
        seed=seed,
    )


def _ask(question: str) -> Prompt:
    # The generators' own wording asks for the bare result, which leaves nothing to imitate but a number.
    problem = re.search(r"[-\d][\d\s+*/-]*", question)
    if problem is None:
        raise ValueError(f"no arithmetic expression in the generator's question {question!r}")
    expression = problem.group().strip()
    text = f"What is {expression}? Show the calculation in one short line, then write the result as 'Answer: number'."
    return ({"role": "user", "content": text},)
