"""Sums and products of one and two digits: the suite that a model of 135M parameters gets right now and then.

Answers take 20 to 50 tokens, so that the quick start and the tests run a real model in minutes on two cores.
"""

from __future__ import annotations

import re

from mopd.rollouts import Prompt
from mopd.tasks.base import TaskItem
from mopd.tasks.puzzles import Puzzle, generate

__all__ = ["DEFAULT_SIZE", "load_arithmetic"]

DEFAULT_SIZE = 60

_ONE_DIGIT = {"min_digits": 1, "max_digits": 1}
_PUZZLES = (
    Puzzle(
        name="sum2",
        dataset="chain_sum",
        difficulty=1,
        settings={"min_terms": 2, "max_terms": 2, **_ONE_DIGIT},
    ),
    Puzzle(
        name="product",
        dataset="products",
        difficulty=2,
        settings={"min_terms": 2, "max_terms": 2, **_ONE_DIGIT},
    ),
    Puzzle(
        name="sum2_two_digits",
        dataset="chain_sum",
        difficulty=3,
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    Puzzle(
        name="sum3",
        dataset="chain_sum",
        difficulty=4,
        settings={"min_terms": 3, "max_terms": 3, **_ONE_DIGIT},
    ),
    Puzzle(
        name="sum4",
        dataset="chain_sum",
        difficulty=5,
        settings={"min_terms": 4, "max_terms": 4, **_ONE_DIGIT},
    ),
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
