"""Charts of study tables (Altair).

All colours keep a contrast of at least 3 to white and to near-black, so that a chart reads in light and in dark, and
are told apart by shape or place as well (blue and orange differ for every common colour blindness).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import altair as alt
import polars as pl

from mopd.conditions import CONDITIONS, ORDERS

__all__ = [
    "condition_order",
    "counts_chart",
    "forest_chart",
    "metric_chart",
    "panels_chart",
    "reliability_chart",
    "surface_chart",
]

BLUE, ORANGE, GREY = "#2f7fc1", "#d2691e", "#888888"
COLOURS = (BLUE, ORANGE, "#2e9b73", "#b05fa3")
SHAPES = ("circle", "diamond", "square", "triangle-up")
ROW = 24  # pixels a condition


def condition_order(names: Sequence[str] | set[str]) -> list[str]:
    """Conditions in table order, those outside the table after them, each next to its other orders of blocks."""
    place = {name: i for i, name in enumerate(CONDITIONS)}

    def key(name: str) -> tuple[int, str]:
        base = next((name.removesuffix(f"_{order}") for order in ORDERS if name.endswith(f"_{order}")), name)
        return place.get(base, len(place)), name

    return sorted(set(names), key=key)


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


def panels_chart(
    rows: pl.DataFrame, *, panel: str, panels: Sequence[tuple[str, str, float | None]], colour: str, columns: int = 3
) -> alt.ConcatChart:
    """Points with intervals, a panel per value of ``panel``, conditions down the side.

    Args:
        rows: ``condition, value, ci_low, ci_high`` and the columns that ``panel`` and ``colour`` name.
        panel: column that parts the panels.
        panels: its values in order, with words for the axis and the chance level (None draws no line).
        colour: column told apart by colour and shape, side by side within a condition.
        columns: panels beside one another.
    """
    order = condition_order(set(rows["condition"]))
    kinds = rows[colour].unique(maintain_order=True).to_list()
    charts = []
    for i, (value, title, chance) in enumerate(panels):
        y = alt.Y(
            "condition:N",
            sort=order,
            title=None,
            scale=alt.Scale(domain=order),
            axis=alt.Axis(labels=i % columns == 0, ticks=i % columns == 0, labelLimit=260, grid=True),
        )
        part = rows.filter(pl.col(panel) == value)
        charts.append(_points(part, y, colour, kinds, title, chance).properties(width=225, height=alt.Step(ROW)))
    chart = alt.concat(*charts, columns=columns, spacing=14).resolve_scale(y="independent", x="independent")
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def _points(
    rows: pl.DataFrame, y: alt.Y, colour: str, kinds: Sequence[str], title: str, chance: float | None
) -> alt.LayerChart:
    base = alt.Chart(rows)
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    tint = alt.Color(f"{colour}:N", scale=alt.Scale(domain=list(kinds), range=list(COLOURS[: len(kinds)])))
    shape = alt.Shape(f"{colour}:N", scale=alt.Scale(domain=list(kinds), range=list(SHAPES[: len(kinds)])))
    beside = alt.YOffset(f"{colour}:N", sort=list(kinds))
    numbers = [c for c in ("value", "ci_low", "ci_high") if c in rows.columns]
    tooltip = ["condition", colour, *(alt.Tooltip(f"{c}:Q", format=".3f") for c in numbers)]
    tooltip += [c for c in ("n_groups", "n_pairs", "n_undefined") if c in rows.columns]
    layers: list[Any] = []
    if chance is not None:
        layers.append(_line(chance))
    layers += [
        base.mark_rule(strokeWidth=2).encode(y=y, x=x.copy(), x2="ci_high:Q", yOffset=beside, color=tint),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            y=y, x=x, yOffset=beside, color=tint, shape=shape, tooltip=tooltip
        ),
    ]
    layers[-2] = layers[-2].encode(x=alt.X("ci_low:Q", title=title, scale=alt.Scale(zero=False, nice=True)))
    return alt.layer(*layers)


def _line(value: float) -> alt.Chart:
    """A dashed line at a value of the horizontal axis."""
    chart = alt.Chart(pl.DataFrame({"at": [value]})).mark_rule(strokeDash=[4, 4], color=GREY)
    return cast(alt.Chart, chart.encode(x="at:Q"))


def forest_chart(rows: pl.DataFrame, *, panel: str, title: str, margin: float | None, level: float) -> alt.ConcatChart:
    """Differences with intervals, a panel per value of ``panel``; filled where the adjusted p-value passes.

    Args:
        rows: ``pair, difference, ci_low, ci_high, p_adjusted, family`` and ``panel``, in the order to be shown.
        panel: column that parts the panels.
        title: words for the axis.
        margin: the band of equivalence around 0; None draws none.
        level: of significance.
    """
    order = rows["pair"].unique(maintain_order=True).to_list()
    passes, not_ = f"adjusted p ≤ {level:g}", f"adjusted p > {level:g}, or undefined"
    drawn = rows.with_columns(
        verdict=pl.when(pl.col("p_adjusted") <= level).then(pl.lit(passes)).otherwise(pl.lit(not_))
    )
    both = [c for c in (drawn["ci_low"].min(), drawn["ci_high"].max(), 0.0) if c is not None]
    reach = max([abs(float(cast(float, c))) for c in both] + [1.2 * (margin or 0.0)])
    charts = []
    for i, value in enumerate(drawn[panel].unique(maintain_order=True)):
        part = drawn.filter(pl.col(panel) == value)
        axis = alt.Axis(labels=i == 0, ticks=i == 0, labelLimit=320, grid=True)
        y = alt.Y("pair:N", sort=order, title=None, scale=alt.Scale(domain=order), axis=axis)
        x = alt.X("ci_low:Q", title=f"{title}, {value}", scale=alt.Scale(domain=[-reach, reach], nice=True))
        base = alt.Chart(part)
        style = {"domain": [passes, not_]}
        point = base.mark_point(size=55, strokeWidth=2, opacity=1).encode(
            y=y,
            x="difference:Q",
            color=alt.Color("verdict:N", scale=alt.Scale(**style, range=[BLUE, GREY])),
            fill=alt.Fill("verdict:N", scale=alt.Scale(**style, range=[BLUE, "transparent"]), legend=None),
            shape=alt.Shape("verdict:N", scale=alt.Scale(**style, range=["diamond", "circle"])),
            tooltip=[
                "pair",
                *(alt.Tooltip(f"{c}:Q", format="+.3f") for c in ("difference", "ci_low", "ci_high")),
                alt.Tooltip("p_adjusted:Q", format=".4f"),
                "family",
                "n_groups",
            ],
        )
        whisker = base.mark_rule(strokeWidth=2).encode(
            y=y, x=x, x2="ci_high:Q", color=alt.Color("verdict:N", scale=alt.Scale(**style, range=[BLUE, GREY]))
        )
        layers: list[Any] = [_line(0.0), whisker, point]
        if margin is not None:
            band = alt.Chart(pl.DataFrame({"low": [-margin], "high": [margin]}))
            layers.insert(0, band.mark_rect(opacity=0.13, color=GREY).encode(x="low:Q", x2="high:Q"))
        charts.append(alt.layer(*layers).properties(width=330, height=alt.Step(ROW)))
    chart = alt.concat(*charts, columns=2, spacing=14).resolve_scale(y="independent", x="independent")
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def surface_chart(cells: pl.DataFrame, *, columns: Sequence[str], centre: float) -> alt.ConcatChart:
    """A heatmap of successes by failures with the numbers in the cells, a panel per order and column value.

    Args:
        cells: ``mopd.dose.SURFACE_TABLE`` of one task, protocol and metric.
        columns: scores, each a column of panels; the rows of panels are the orders of the blocks.
        centre: the value with the middle colour.
    """
    values = cells["value"].drop_nulls()
    reach = max([0.05, *((values - centre).abs().to_list())])
    bounds = zip(cells["ci_low"], cells["ci_high"], strict=True)
    drawn = cells.with_columns(
        words=pl.Series(["undefined" if v is None else f"{v:.3f}" for v in cells["value"]], dtype=pl.String),
        interval=pl.Series(["" if low is None else f"[{low:.2f}, {high:.2f}]" for low, high in bounds], dtype=pl.String),
        strong=((pl.col("value") - centre).abs() > 0.55 * reach).fill_null(False),
    )
    charts = []
    for order in drawn["order"].unique(maintain_order=True):
        for score in columns:
            part = drawn.filter(pl.col("order") == order, pl.col("score") == score)
            title = f"{score}, {order.replace('_', ' ')}"
            charts.append(_heatmap(part, centre, reach, title))
    chart = alt.concat(*charts, columns=len(columns), spacing=24).resolve_scale(color="shared")
    return cast(alt.ConcatChart, chart)


def _heatmap(part: pl.DataFrame, centre: float, reach: float, title: str) -> alt.LayerChart:
    base = alt.Chart(part).encode(
        x=alt.X("failures:O", title="failures shown", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("successes:O", title="successes shown", sort="descending", axis=alt.Axis(grid=False)),
        tooltip=[
            "condition",
            *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("value", "ci_low", "ci_high")),
            "n_groups",
            "n_pairs",
        ],
    )
    # blue to orange through a light middle: told apart by every common colour blindness
    scale = alt.Scale(
        domain=[centre - reach, centre, centre + reach], range=["#b35806", "#f2f0eb", "#1f6fb2"], clamp=True
    )
    ink = alt.condition(alt.datum.strong, alt.value("white"), alt.value("#222222"))
    layers: list[Any] = [
        base.mark_rect(stroke="#999999", strokeWidth=0.5).encode(
            color=alt.Color("value:Q", scale=scale, legend=alt.Legend(title="AUC", orient="right", gradientLength=120))
        ),
        base.mark_text(fontSize=14, dy=-7).encode(text="words:N", color=ink),
        base.mark_text(fontSize=10.5, dy=9).encode(text="interval:N", color=ink),
    ]
    return cast(
        alt.LayerChart, alt.layer(*layers).properties(width=alt.Step(96), height=alt.Step(46), title=title)
    )


def reliability_chart(curves: pl.DataFrame, *, panels: Sequence[str]) -> alt.ConcatChart:
    """Share of successes against forecast, a panel per condition, with the diagonal of a calibrated forecast.

    Args:
        curves: ``reliability.parquet`` of one task, protocol and method.
        panels: conditions.
    """
    scores = curves["score"].unique(maintain_order=True).to_list()
    diagonal = alt.Chart(pl.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]})).mark_line(
        strokeDash=[4, 4], color=GREY, strokeWidth=1
    )
    unit = alt.Scale(domain=[0, 1])
    charts = []
    for name in panels:
        base = alt.Chart(curves.filter(pl.col("condition") == name)).encode(
            x=alt.X("forecast:Q", title="forecast", scale=unit, axis=alt.Axis(tickCount=5)),
            y=alt.Y("observed:Q", title="share of successes", scale=unit, axis=alt.Axis(tickCount=5)),
            color=alt.Color("score:N", scale=alt.Scale(domain=scores, range=list(COLOURS[: len(scores)]))),
        )
        points = base.mark_point(filled=True, size=45, opacity=1).encode(
            shape=alt.Shape("score:N", scale=alt.Scale(domain=scores, range=list(SHAPES[: len(scores)]))),
            tooltip=[
                "condition",
                "score",
                alt.Tooltip("forecast:Q", format=".3f"),
                alt.Tooltip("observed:Q", format=".3f"),
                "n_targets",
            ],
        )
        line = base.mark_line(strokeWidth=1.5)
        charts.append(
            alt.layer(diagonal.encode(x="x:Q", y="y:Q"), line, points).properties(width=210, height=210, title=name)
        )
    chart = alt.concat(*charts, columns=3, spacing=20)
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def counts_chart(counts: pl.DataFrame, *, title: str) -> alt.Chart:
    """Stacked bars of units by what became of them, a bar per condition.

    Args:
        counts: ``condition, outcome, units``, outcomes in the order to be stacked.
        title: words for the axis.
    """
    outcomes = counts["outcome"].unique(maintain_order=True).to_list()
    palette = [BLUE, "#9dbfd9", ORANGE, "#e5b08a", "#b05fa3", GREY]
    order = condition_order(set(counts["condition"]))
    chart = alt.Chart(counts.with_row_index("place")).mark_bar(stroke="#777777", strokeWidth=0.4)
    return cast(
        alt.Chart,
        chart.encode(
            y=alt.Y("condition:N", sort=order, title=None, axis=alt.Axis(labelLimit=260)),
            x=alt.X("sum(units):Q", title=title),
            order="place:Q",
            color=alt.Color(
                "outcome:N", title=None, scale=alt.Scale(domain=outcomes, range=palette[: len(outcomes)])
            ),
            tooltip=["condition", "outcome", "units"],
        )
        .properties(width=560, height=alt.Step(ROW - 4))
        .configure_legend(orient="top", labelLimit=400),
    )
