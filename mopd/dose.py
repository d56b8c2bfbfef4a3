"""Dose and order: the signal as a function of how many peers are shown, and in which order.

A sweep is the grid of conditions ``{k}s{m}f`` for k = 0..K successes and m = 0..M failures, with ``shell_only`` as the
dose of none. All its cells rest on the pairs that the largest of them can serve (common support), so a cell does not
look better for having dropped the hard prompts; what a larger grid costs in pairs is printed with the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from mopd.conditions import ORDERS, Condition, condition
from mopd.peers import normalise, usable
from mopd.rollouts import Group

__all__ = ["SURFACE_TABLE", "largest_grid", "other_orders", "surface_table", "sweep"]

SUCCESSES_FIRST = "successes_first"
SURFACE_TABLE = {
    **dict.fromkeys(("task", "protocol", "score", "metric", "condition", "order"), pl.String()),
    **dict.fromkeys(("successes", "failures"), pl.Int64()),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    **dict.fromkeys(("n_groups", "n_pairs", "n_undefined"), pl.Int64()),
}
"""Columns and types of a response surface: a cell of the grid in one order of its blocks."""


def sweep(successes: int, failures: int) -> tuple[str, ...]:
    """Names of the grid up to ``successes`` x ``failures``, ``shell_only`` first.

    Raises:
        ValueError: a number is negative, or both are 0.
    """
    if min(successes, failures) < 0 or not successes + failures:
        raise ValueError(
            f"a sweep goes up to K successes and M failures, one of them above 0, got {successes} {failures}"
        )
    cells = [(k, m) for k in range(successes + 1) for m in range(failures + 1) if k + m]
    return ("shell_only", *(condition(f"{k}s{m}f").name for k, m in cells))


def other_orders(names: Iterable[str], orders: Sequence[str]) -> tuple[str, ...]:
    """The members of the family among ``names`` that show both kinds of peers, in each of ``orders``."""
    family = [c for c in map(condition, names) if _in_grid(c) and c.success_slots and c.failure_slots]
    return tuple(f"{c.name}_{order}" for c in family for order in orders)


def largest_grid(groups: Iterable[Group], successes: int, failures: int) -> tuple[int, int]:
    """The grid within ``successes`` x ``failures`` with the most cells that some group can fill around a left-out pair.

    A group with S different successes and F different failures can fill k < S and m < F; of grids with as many cells
    the one with more successes is taken. (0, 0) if no group has both kinds.
    """
    corners = {(0, 0)}
    for group in groups:
        texts = {True: set[str](), False: set[str]()}
        for rollout in usable(group):
            texts[bool(rollout.success)].add(normalise(rollout.response))
        k, m = (len(texts[label]) - 1 for label in (True, False))
        if min(k, m) >= 0:
            corners.add((min(k, successes), min(m, failures)))
    return max(corners, key=lambda corner: ((corner[0] + 1) * (corner[1] + 1), corner[0]))


def surface_table(metrics: pl.DataFrame) -> pl.DataFrame:
    """The cells of the grid among the conditions of ``metrics.parquet``: the rows of ``SURFACE_TABLE``.

    The order of a cell without both kinds of peers is ``successes_first``, as for every condition that names none.
    """
    recipes = [c for c in map(condition, metrics["condition"].unique()) if _in_grid(c, any_order=True)]
    cells = pl.DataFrame(
        [(c.name, c.order, c.success_slots, c.failure_slots) for c in recipes],
        schema={"condition": pl.String(), "order": pl.String(), "successes": pl.Int64(), "failures": pl.Int64()},
        orient="row",
    )
    rank = {name: i for i, name in enumerate((SUCCESSES_FIRST, *ORDERS))}
    return (
        metrics.join(cells, on="condition", how="inner", validate="m:1")
        .select(list(SURFACE_TABLE))
        .sort("task", "protocol", "score", "metric", pl.col("order").replace_strict(rank), "successes", "failures")
    )


def _in_grid(cond: Condition, *, any_order: bool = False) -> bool:
    """Whether slots (and order) say all of a condition, inside the shell and with no one passed over."""
    if not cond.shell or cond.success_offset or not (any_order or cond.order == SUCCESSES_FIRST):
        return False
    usual = cond.name.removesuffix(f"_{cond.order}")
    return usual == "shell_only" or (condition(usual).of_family and not condition(usual).control_of)
