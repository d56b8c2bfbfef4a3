"""The suite math: problems of graded difficulty from reasoning-gym, from sums to word problems."""

from __future__ import annotations

from mopd.tasks.base import TaskItem
from mopd.tasks.prompts import math_prompt
from mopd.tasks.puzzles import Puzzle, generate

__all__ = ["DEFAULT_SIZE", "load_math"]

DEFAULT_SIZE = 60

_PUZZLES = (
    Puzzle(
        name="sum3_two_digits",
        dataset="chain_sum",
        difficulty=1,
        settings={"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
    ),
    Puzzle(
        name="expression",
        dataset="basic_arithmetic",
        difficulty=2,
        settings={"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2, "allow_negation": False},
    ),
    Puzzle(
        name="product",
        dataset="products",
        difficulty=2,
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    Puzzle(name="gcd", dataset="gcd", difficulty=2, settings={"min_value": 6, "max_value": 100}),
    Puzzle(
        name="fraction",
        dataset="fraction_simplification",
        difficulty=3,
        settings={"min_value": 1, "max_value": 12, "min_factor": 2, "max_factor": 9, "styles": ("plain",)},
    ),
    Puzzle(name="lcm", dataset="lcm", difficulty=3, settings={"min_value": 2, "max_value": 24}),
    Puzzle(
        name="equation",
        dataset="simple_equations",
        difficulty=3,
        settings={"min_terms": 2, "max_terms": 3, "min_value": 1, "max_value": 20},
    ),
    Puzzle(
        name="legs",
        dataset="leg_counting",
        difficulty=3,
        settings={"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 6},
    ),
    Puzzle(name="polygon", dataset="simple_geometry", difficulty=3, settings={"min_sides": 3, "max_sides": 4}),
    Puzzle(name="word_problem", dataset="gsm_symbolic", difficulty=4),
)


def load_math(*, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """``limit`` items (default 60), an even mix of ten kinds.

    Raises:
        ValueError: if ``limit`` is negative or there are not that many distinct problems.
    """
    return generate("math", _PUZZLES, math_prompt, size=DEFAULT_SIZE if limit is None else limit, seed=seed)
