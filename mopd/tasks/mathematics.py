"""The suite math: problems of graded difficulty from reasoning-gym, from sums to word problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mopd.tasks.base import TaskItem
from mopd.tasks.prompts import math_prompt
from mopd.tasks.puzzles import Puzzle, generate

__all__ = ["DEFAULT_SIZE", "load_math"]

DEFAULT_SIZE = 60


def _is_proper_fraction(entry: Mapping[str, Any]) -> bool:
    # The scorer wants "1/1" and "2/1" to the letter, which is not what was asked for.
    return not entry["answer"].endswith("/1")


_PUZZLES = (
    Puzzle(
        name="sum_two_digits",
        dataset="chain_sum",
        difficulty=1,
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    Puzzle(
        name="product",
        dataset="products",
        difficulty=1,
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    Puzzle(
        name="expression",
        dataset="basic_arithmetic",
        difficulty=2,
        settings={"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1, "allow_negation": False},
    ),
    Puzzle(name="gcd", dataset="gcd", difficulty=2, settings={"min_value": 4, "max_value": 40}),
    Puzzle(
        name="equation",
        dataset="simple_equations",
        difficulty=2,
        settings={"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 10},
    ),
    Puzzle(name="lcm", dataset="lcm", difficulty=3, settings={"min_value": 2, "max_value": 12}),
    Puzzle(
        name="fraction",
        dataset="fraction_simplification",
        difficulty=3,
        settings={"min_value": 1, "max_value": 9, "min_factor": 2, "max_factor": 5, "styles": ("plain",)},
        keep=_is_proper_fraction,
    ),
    Puzzle(
        name="sum3_two_digits",
        dataset="chain_sum",
        difficulty=3,
        settings={"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
    ),
    Puzzle(
        name="legs",
        dataset="leg_counting",
        difficulty=4,
        settings={"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 4},
    ),
    Puzzle(name="word_problem", dataset="gsm_symbolic", difficulty=5),
)


def load_math(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """``limit`` items (default 60), an even mix of ten kinds.

    Raises:
        ValueError: if ``limit`` is negative or there are not that many distinct problems.
    """
    return generate("math", _PUZZLES, math_prompt, size=DEFAULT_SIZE if limit is None else limit, seed=seed)
