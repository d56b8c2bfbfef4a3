"""Charts of study tables (Altair)."""

from __future__ import annotations

from typing import Any, cast

import altair as alt
import polars as pl

from mopd.conditions import CONDITIONS

__all__ = ["metric_chart"]


def metric_chart(rows: pl.DataFrame, *, title: str, chance: float | None) -> alt.LayerChart:
    """One metric per condition as a point with its interval, conditions in table order.

    Args:
        rows: ``metrics.parquet`` of one task, protocol, score and metric.
        title: words for the value axis, with its unit.
        chance: drawn as a dashed line; None for none.
    """
    present = set(rows["condition"])
    order = [name for name in CONDITIONS if name in present] + sorted(present - set(CONDITIONS))
    y = alt.Y("condition:N", sort=order, title="condition")
    tooltip = ["condition", "value", "ci_low", "ci_high", "n_groups", "n_pairs", "n_undefined"]
    base = alt.Chart(rows)
    layers: list[Any] = [
        base.mark_rule(strokeWidth=2).encode(
            y=y, x=alt.X("ci_low:Q", title=title, scale=alt.Scale(zero=False)), x2="ci_high:Q"
        ),
        base.mark_point(filled=True, size=70).encode(y=y, x="value:Q", tooltip=tooltip),
    ]
    if chance is not None:
        line = alt.Chart(pl.DataFrame({"chance": [chance]})).mark_rule(strokeDash=[4, 4])
        layers.append(line.encode(x="chance:Q"))
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=alt.Step(26)))
