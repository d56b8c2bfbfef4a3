"""What a rollout table holds, as data and rendered as text. Polars in, text out; no model, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from mopd.conditions import condition
from mopd.diversity import DEFAULT_K, group_diversity, summarise_diversity
from mopd.peers import leave_pair_out, normalise
from mopd.rollouts import Group, groups_of

__all__ = ["RolloutSummary", "can_fill_2s1f", "summarise"]

SHOWN = {
    "distinct_1": "distinct-1 (each group cut to its shortest response)",
    "distinct_2": "distinct-2 (likewise)",
    "self_bleu": "self-BLEU (lower is more diverse)",
    "unique_ratio": "unique ratio",
    "edit_distance": "edit distance (characters, normalised)",
    "ast_distance": "AST distance (Python)",
    "answer_entropy": "answer entropy, nats",
    "success_rate": "mean@k, the same for every k",
}


def can_fill_2s1f(group: Group) -> bool:
    """Does some pair of the group have ``2s1f`` filled when it is left out, as the study would do it?

    That takes at least three different successes and two different failures; the answer does not depend on
    the seed, which only orders the candidates.
    """
    return any(unit.peers is not None for unit in leave_pair_out(group, condition("2s1f"), 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSummary:
    """A rollout table in numbers.

    Attributes:
        tasks: a row per task and one with task null for all: ``task, groups, rollouts, success, failure,
            unjudged, success_rate`` (over judged rollouts), ``mixed`` (groups with a success and a failure),
            ``fillable`` (groups that can fill ``2s1f``), ``duplicates`` (rollouts whose normalised text an
            earlier one of the group has), ``finished`` (ended by themselves), ``cut`` (by the length limit),
            ``characters`` and ``tokens`` (medians of response length; tokens over rollouts with exact ids, null
            without any).
        group_sizes: ``size, groups``.
        diversity: as ``summarise_diversity`` gives it.
        policies, steps: distinct values, sorted.
    """

    tasks: pl.DataFrame
    group_sizes: pl.DataFrame
    diversity: pl.DataFrame
    policies: tuple[str, ...]
    steps: tuple[int, ...]

    def render(self) -> str:
        """The summary as lines of text."""
        sizes = ", ".join(f"{n} of {size} rollouts" for size, n in self.group_sizes.iter_rows())
        steps = f"{len(self.steps)} ({self.steps[0]} to {self.steps[-1]})" if self.steps else "not known"
        lines = [
            f"policy  {', '.join(self.policies) or 'not known'}",
            f"steps   {steps}",
            f"groups  {sizes}",
            "",
        ]
        lines += table(self.tasks)
        lines += ["", "means over groups, of judged rollouts; a group too small for a measure leaves it undefined"]
        return "\n".join(lines + aligned(self._means()))

    def _means(self) -> list[list[str]]:
        """Cells: a line per measure with a column per task, and the groups that define it or do not."""
        names = [None, *(self.tasks["task"].to_list()[1:])]
        parts = {name: self.diversity.filter(pl.col("task").eq_missing(name)) for name in names}
        overall = parts[None]
        columns = [part["value"] for part in parts.values()]
        cells = [["", *(name or "all" for name in names), "groups", "undefined"]]
        for place, metric in enumerate(overall["metric"]):
            label = metric.replace("_at_", "@") if metric.startswith("pass_at_") else SHOWN.get(metric)
            if label is not None:
                values = [number(column[place], 3) for column in columns]
                cells.append([label, *values, *map(str, overall.row(place)[-2:])])
        return cells

    def __str__(self) -> str:
        return self.render()


def summarise(
    frame: pl.DataFrame,
    *,
    can_fill: Callable[[Group], bool] = can_fill_2s1f,
    k: Sequence[int] = DEFAULT_K,
    track: Callable[[Sequence[pl.DataFrame]], Iterable[pl.DataFrame]] = iter,
) -> RolloutSummary:
    """Summary of a rollout table in ``ROLLOUT_SCHEMA``.

    Args:
        frame: rollouts, judged or not.
        can_fill: tells if a group can fill ``2s1f``.
        k: for pass@k.
        track: wraps the groups as diversity is measured, for a progress bar (about 0.1 s a group of 8).
    """
    groups = frame.partition_by("group_id", maintain_order=True)
    facts = pl.DataFrame(
        [group_facts(rows, group, can_fill) for rows, group in zip(groups, groups_of(frame), strict=True)],
        schema={
            "task": pl.String,
            "mixed": pl.Boolean,
            "fillable": pl.Boolean,
            "duplicates": pl.Int64,
            "size": pl.Int64,
        },
        orient="row",
    )
    names = [name for name in frame["task"].unique(maintain_order=True).to_list() if name is not None]
    rows = [task_row(None, frame, facts)]
    if len(names) > 1:
        rows += [task_row(n, frame.filter(pl.col("task") == n), facts.filter(pl.col("task") == n)) for n in names]
    return RolloutSummary(
        tasks=pl.DataFrame(
            rows, schema_overrides={"task": pl.String, "tokens": pl.Float64, "success_rate": pl.Float64}
        ),
        group_sizes=facts.group_by("size").agg(pl.len().alias("groups")).sort("size"),
        diversity=summarise_diversity(group_diversity(frame, k=k, track=track)),
        policies=tuple(frame["policy"].drop_nulls().unique().sort().to_list()),
        steps=tuple(frame["step"].drop_nulls().unique().sort().to_list()),
    )


def group_facts(rows: pl.DataFrame, group: Group, can_fill: Callable[[Group], bool]) -> dict[str, object]:
    labels = set(rows["success"].drop_nulls().to_list())
    return {
        "task": rows["task"][0],
        "mixed": len(labels) == 2,
        "fillable": can_fill(group),
        "duplicates": rows.height - len({normalise(text) for text in rows["response"]}),
        "size": rows.height,
    }


def task_row(name: str | None, rows: pl.DataFrame, facts: pl.DataFrame) -> dict[str, object]:
    judged = rows["success"].drop_nulls()
    return {
        "task": name,
        "groups": facts.height,
        "rollouts": rows.height,
        "success": int(judged.sum()),
        "failure": len(judged) - int(judged.sum()),
        "unjudged": rows.height - len(judged),
        "success_rate": judged.mean(),
        "mixed": int(facts["mixed"].sum()),
        "fillable": int(facts["fillable"].sum()),
        "duplicates": int(facts["duplicates"].sum()),
        "finished": rows.filter("finished").height,
        "cut": rows.filter(~pl.col("finished")).height,
        "characters": rows["response"].str.len_chars().median(),
        "tokens": rows["response_ids"].list.len().drop_nulls().median(),
    }


HEADINGS = {"fillable": "fill 2s1f", "success_rate": "rate", "characters": "chars", "duplicates": "copies"}


def table(frame: pl.DataFrame) -> list[str]:
    """Lines of a right-aligned table; a null task is all of them, any other null a dash."""
    cells = [[HEADINGS.get(name, name) for name in frame.columns]]
    for row in frame.iter_rows():
        cells.append([row[0] or "all", *(number(value, 2) for value in row[1:])])
    return aligned(cells)


def aligned(cells: list[list[str]]) -> list[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def number(value: float | int | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) and not value.is_integer() else f"{value:.0f}"
