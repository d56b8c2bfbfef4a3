"""The report's charts (Altair): several panels side by side, for the screen in light and dark and for paper.

All colours keep a contrast of at least 3 to white and to near-black, and are told apart by shape or place as well (blue
and orange differ for every common colour blindness).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import altair as alt
import polars as pl

from analysis.charts import condition_order
from analysis.tables import SCORE_NOTE

__all__ = [
    "counts_chart",
    "forest_chart",
    "panels_chart",
    "reliability_chart",
    "surface_chart",
]

BLUE, ORANGE, GREY = "#2f7fc1", "#d2691e", "#888888"
COLOURS = (BLUE, ORANGE, "#2e9b73", "#b05fa3")
SHAPES = ("circle", "diamond", "square", "triangle-up")
ROW = 24  # pixels a condition


def panels_chart(
    rows: pl.DataFrame,
    *,
    panel: str,
    panels: Sequence[tuple[str, str | list[str], float | None]],
    colour: str,
    columns: int = 3,
) -> alt.ConcatChart:
    """Points with intervals, a panel per value of ``panel``, conditions down the side.

    Args:
        rows: ``condition, value, ci_low, ci_high`` and the columns that ``panel`` and ``colour`` name.
        panel: column that parts the panels.
        panels: its values in order, with words for the axis (a list has a line each) and the chance level (None draws
            no line).
        colour: column told apart by colour and shape, side by side within a condition.
        columns: panels beside one another.
    """
    order = condition_order(set(rows["condition"]))
    kinds = _ordered(rows[colour])
    height = max(len(order), 1) * (ROW if len(kinds) > 1 else ROW - 6)
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
        charts.append(_points(part, y, colour, kinds, title, chance).properties(width=225, height=height))
    chart = alt.concat(*charts, columns=columns, spacing=14).resolve_scale(y="independent", x="independent")
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def _ordered(values: pl.Series) -> list[Any]:
    """The distinct values as they come, scores in the order of all tables, so that each has one colour."""
    scores = list(SCORE_NOTE)
    return sorted(values.unique(maintain_order=True), key=lambda v: scores.index(v) if v in scores else len(scores))


def _looks(kinds: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Colours and shapes; a score has its own also where it is alone."""
    scores = list(SCORE_NOTE)
    places = [scores.index(kind) if kind in scores else i for i, kind in enumerate(kinds)]
    return [COLOURS[i] for i in places], [SHAPES[i] for i in places]


def _points(
    rows: pl.DataFrame, y: alt.Y, colour: str, kinds: Sequence[str], title: str | list[str], chance: float | None
) -> alt.LayerChart:
    scale = alt.Scale(zero=False, nice=True)
    colours, shapes = _looks(kinds)
    tint = alt.Color(f"{colour}:N", scale=alt.Scale(domain=list(kinds), range=colours))
    shape = alt.Shape(f"{colour}:N", scale=alt.Scale(domain=list(kinds), range=shapes))
    beside = alt.YOffset(f"{colour}:N", sort=list(kinds))
    numbers = [c for c in ("value", "ci_low", "ci_high") if c in rows.columns]
    tooltip = ["condition", colour, *(alt.Tooltip(f"{c}:Q", format=".3f") for c in numbers)]
    tooltip += [c for c in ("n_groups", "n_pairs", "n_undefined") if c in rows.columns]
    layers: list[Any] = [] if chance is None else [_line(chance)]
    spread = rows.filter(pl.col("ci_low").is_not_null())
    if not spread.is_empty():  # an axis without a number has no end
        low = alt.X("ci_low:Q", title=title, scale=scale)
        rule = alt.Chart(spread).mark_rule(strokeWidth=2)
        layers.append(rule.encode(y=y, x=low, x2="ci_high:Q", yOffset=beside, color=tint))
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    point = alt.Chart(rows).mark_point(filled=True, size=45, opacity=1)
    layers.append(point.encode(y=y, x=x, yOffset=beside, color=tint, shape=shape, tooltip=tooltip))
    return cast(alt.LayerChart, alt.layer(*layers))


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
    verdicts = (f"adjusted p ≤ {level:g}", f"adjusted p > {level:g}, or undefined")
    drawn = rows.with_columns(
        verdict=pl.when(pl.col("p_adjusted") <= level).then(pl.lit(verdicts[0])).otherwise(pl.lit(verdicts[1]))
    )
    ends = [c for c in (drawn["ci_low"].min(), drawn["ci_high"].max()) if c is not None]
    reach = max([*(abs(float(cast(float, c))) for c in ends), 1.2 * (margin or 0.0), 1e-3])
    charts = []
    for i, value in enumerate(_ordered(drawn[panel])):
        axis = alt.Axis(labels=i == 0, ticks=i == 0, labelLimit=320, grid=True)
        y = alt.Y("pair:N", sort=order, title=None, scale=alt.Scale(domain=order), axis=axis)
        x = alt.X(
            "ci_low:Q",
            title=f"{title}, {value}",
            scale=alt.Scale(domain=[-reach, reach], nice=True),
            axis=alt.Axis(tickCount=5),
        )
        layers = _whiskers(drawn.filter(pl.col(panel) == value), x, y, verdicts)
        layers.insert(0, _line(0.0))
        if margin is not None:
            band = alt.Chart(pl.DataFrame({"low": [-margin], "high": [margin]}))
            layers.insert(0, band.mark_rect(opacity=0.13, color=GREY).encode(x="low:Q", x2="high:Q"))
        charts.append(alt.layer(*layers).properties(width=330, height=alt.Step(ROW)))
    chart = alt.concat(*charts, columns=2, spacing=14).resolve_scale(y="independent", x="independent")
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def _whiskers(rows: pl.DataFrame, x: alt.X, y: alt.Y, verdicts: Sequence[str]) -> list[Any]:
    """An interval and a point for each difference, filled where the first verdict holds."""
    base = alt.Chart(rows)
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=list(verdicts), range=[BLUE, GREY]))
    inside = alt.Scale(domain=list(verdicts), range=[BLUE, "transparent"])
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=list(verdicts), range=["diamond", "circle"]))
    tooltip = [
        "pair",
        *(alt.Tooltip(f"{c}:Q", format="+.3f") for c in ("difference", "ci_low", "ci_high")),
        alt.Tooltip("p_adjusted:Q", format=".4f"),
        "family",
        "n_groups",
    ]
    return [
        base.mark_rule(strokeWidth=2).encode(y=y, x=x, x2="ci_high:Q", color=colour),
        base.mark_point(size=55, strokeWidth=2, opacity=1).encode(
            y=y,
            x="difference:Q",
            color=colour,
            fill=alt.Fill("verdict:N", scale=inside),
            shape=shape,
            tooltip=tooltip,
        ),
    ]


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
        interval=pl.Series(
            ["" if low is None else f"[{low:.2f}, {high:.2f}]" for low, high in bounds], dtype=pl.String
        ),
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
        domain=[centre - reach, centre, centre + reach],
        range=["#b35806", "#f2f0eb", "#1f6fb2"],
        clamp=True,
        interpolate="rgb",
    )
    ink = alt.condition(alt.datum.strong, alt.value("white"), alt.value("#222222"))
    layers: list[Any] = [
        base.mark_rect(stroke="#999999", strokeWidth=0.5).encode(
            color=alt.Color("value:Q", scale=scale, legend=alt.Legend(title="AUC", orient="right", gradientLength=120))
        ),
        base.mark_text(fontSize=14, dy=-7).encode(text="words:N", color=ink),
        base.mark_text(fontSize=10.5, dy=9).encode(text="interval:N", color=ink),
    ]
    return cast(alt.LayerChart, alt.layer(*layers).properties(width=alt.Step(96), height=alt.Step(46), title=title))


def reliability_chart(curves: pl.DataFrame, *, panel: str, panels: Sequence[str]) -> alt.ConcatChart:
    """Share of successes against forecast, a panel per value, with the diagonal of a calibrated forecast.

    Args:
        curves: ``reliability.parquet`` of one protocol and method.
        panel: column that parts the panels, ``condition`` or ``task``; the other one has one value.
        panels: its values in order.
    """
    scores = _ordered(curves["score"])
    corners = alt.Chart(pl.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]}))
    diagonal = corners.mark_line(strokeDash=[4, 4], color=GREY, strokeWidth=1).encode(x="x:Q", y="y:Q")
    charts = [
        alt.layer(diagonal, *_curve(curves.filter(pl.col(panel) == name), scores)).properties(
            width=210, height=210, title=[name, _targets(curves.filter(pl.col(panel) == name))]
        )
        for name in panels
    ]
    chart = alt.concat(*charts, columns=3, spacing=20)
    return cast(alt.ConcatChart, chart.configure_legend(orient="top", title=None))


def _targets(rows: pl.DataFrame) -> str:
    """How many forecasts one curve is made of."""
    of_curve = rows.group_by("score").agg(pl.col("n_targets").sum())["n_targets"].max()
    return f"{of_curve} target{'s' * (of_curve != 1)}"


def _curve(rows: pl.DataFrame, scores: Sequence[str]) -> list[Any]:
    """A line with a point a bin for each score."""
    unit = alt.Scale(domain=[0, 1])
    colours, shapes = _looks(scores)
    base = alt.Chart(rows).encode(
        x=alt.X("forecast:Q", title="forecast", scale=unit, axis=alt.Axis(tickCount=5)),
        y=alt.Y("observed:Q", title="share of successes", scale=unit, axis=alt.Axis(tickCount=5)),
        color=alt.Color("score:N", scale=alt.Scale(domain=list(scores), range=colours)),
    )
    numbers = [alt.Tooltip(f"{c}:Q", format=".3f") for c in ("forecast", "observed")]
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape("score:N", scale=alt.Scale(domain=list(scores), range=shapes)),
        tooltip=["condition", "score", *numbers, "n_targets"],
    )
    return [base.mark_line(strokeWidth=1.5), points]


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
            color=alt.Color("outcome:N", title=None, scale=alt.Scale(domain=outcomes, range=palette[: len(outcomes)])),
            tooltip=["condition", "outcome", "units"],
        )
        .properties(width=560, height=alt.Step(ROW - 4))
        .configure_legend(orient="top", labelLimit=400),
    )
