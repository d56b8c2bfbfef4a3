"""Charts of study tables (Altair).

Colours come from palettes that the colour-blind can tell apart, and never speak alone: a shape, a number or a dash says
the same. Text that comes from data reaches a chart only as a value, never as a field name or an expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import altair as alt
import polars as pl

from mopd.conditions import CONDITIONS, ORDERS

__all__ = [
    "chart_png",
    "condition_order",
    "contrast_chart",
    "curve_chart",
    "difference_chart",
    "matrix_chart",
    "metric_chart",
    "saw_chart",
    "scatter_chart",
]

BLUE, ORANGE, GREY = "#1f77dc", "#d9730d", "#8a8a8a"
PICK = "picked"
"""Name of the selection in charts that can be clicked."""


def condition_order(names: Iterable[str]) -> list[str]:
    """Conditions in table order, the others after them by name; other orders of blocks stand behind the usual one."""
    place = {name: i for i, name in enumerate(CONDITIONS)}

    def key(name: str) -> tuple[int, str]:
        usual = next((name.removesuffix(f"_{order}") for order in ORDERS if name.endswith(f"_{order}")), name)
        return place.get(usual, len(place)), name

    return sorted(set(names), key=key)


def _pick(*fields: str) -> alt.Parameter:
    return alt.selection_point(name=PICK, fields=list(fields), on="click", empty=False)


def metric_chart(
    rows: pl.DataFrame, *, title: str, chance: float | None, unit: str = "", compare: Sequence[str] = ()
) -> alt.LayerChart:
    """One metric per condition as a point with its interval and number, conditions in table order.

    Args:
        rows: ``metrics.parquet`` of one task, protocol, score and metric; with a column ``study`` to compare several.
        title: words for the value axis, with its unit.
        chance: drawn as a dashed line; None for none.
        unit: of the value, for the hover.
        compare: the values of ``study`` in order, if there are several: told apart by colour and shape.
    """
    y: Any = alt.Y("condition:N", sort=condition_order(rows["condition"].to_list()), title=None)
    suffix = f" ({unit})" if unit and unit != "1" else ""
    tooltip = [
        *([alt.Tooltip("study:N")] if compare else []),
        alt.Tooltip("condition:N"),
        alt.Tooltip("value:Q", format=".4f", title=f"value{suffix}"),
        *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("ci_low", "ci_high")),
        *(alt.Tooltip(f"{name}:Q") for name in ("n_groups", "n_pairs", "n_undefined")),
    ]
    base = alt.Chart(rows).encode(y=y)
    tell: dict[str, Any] = {"color": alt.value(BLUE)}
    if compare:
        tell = {
            "color": alt.Color(
                "study:N", scale=alt.Scale(domain=list(compare), range=[BLUE, ORANGE]), sort=list(compare)
            ),
            "yOffset": alt.YOffset("study:N", sort=list(compare)),
        }
    shape: dict[str, Any] = {"shape": alt.Shape("study:N", sort=list(compare))} if compare else {}
    x = alt.X("ci_low:Q", title=title, scale=alt.Scale(zero=False))
    layers: list[Any] = [
        base.mark_rule(strokeWidth=2.5, opacity=0.75).encode(x=x, x2="ci_high:Q", **tell),
        base.mark_point(filled=True, size=110, opacity=1, cursor="pointer")
        .encode(x="value:Q", tooltip=tooltip, **tell, **shape)
        .add_params(_pick("condition")),
    ]
    if not compare:
        layers.append(
            base.mark_text(dy=-11, fontSize=12, color=BLUE).encode(x="value:Q", text=alt.Text("value:Q", format=".3f"))
        )
    if chance is not None:
        line = alt.Chart(pl.DataFrame({"chance": [chance], "words": ["chance"]}))
        layers.append(
            line.mark_rule(strokeDash=[4, 4], color=GREY).encode(x="chance:Q", tooltip=["words:N", "chance:Q"])
        )
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=alt.Step(40 if not compare else 22)))


def contrast_chart(rows: pl.DataFrame, *, title: str) -> alt.LayerChart:
    """Paired differences with their intervals; filled where the adjusted p-value is under 0.05.

    Args:
        rows: ``contrasts.parquet`` of one task, protocol, score and metric.
        title: words for the value axis.
    """
    label = pl.concat_str("condition", pl.lit(" − "), "reference")
    sure = pl.when(pl.col("p_adjusted") < 0.05).then(pl.lit("below 0.05")).otherwise(pl.lit("0.05 or more"))
    shown = rows.with_columns(contrast=label, adjusted=sure)
    base = alt.Chart(shown).encode(y=alt.Y("contrast:N", sort=None, title=None, axis=alt.Axis(labelLimit=300)))
    tooltip = [
        alt.Tooltip("contrast:N"),
        *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("difference", "ci_low", "ci_high")),
        *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("p_value", "p_adjusted")),
        *(alt.Tooltip(f"{name}:Q") for name in ("n_groups", "n_pairs")),
    ]
    domain = ["below 0.05", "0.05 or more"]
    layers: list[Any] = [
        base.mark_rule(strokeWidth=2, color=GREY).encode(x=alt.X("ci_low:Q", title=title), x2="ci_high:Q"),
        base.mark_point(size=90, opacity=1, strokeWidth=2).encode(
            x="difference:Q",
            tooltip=tooltip,
            color=alt.Color("adjusted:N", title="adjusted p", scale=alt.Scale(domain=domain, range=[BLUE, GREY])),
            shape=alt.Shape(
                "adjusted:N", title="adjusted p", scale=alt.Scale(domain=domain, range=["diamond", "circle"])
            ),
        ),
        alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 4], color=GREY).encode(x="zero:Q"),
    ]
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=alt.Step(26)))


def matrix_chart(rows: pl.DataFrame, *, rollouts: Mapping[str, str], title: str, signed: bool) -> alt.LayerChart:
    """Rollouts by conditions, coloured by score, with the number in every cell.

    Args:
        rows: ``mopd.browsing.score_matrix`` of one protocol.
        rollouts: what to call each rollout, in the order of the rows.
        title: words for the colour, with its unit.
        signed: whether 0 is the middle of the colours.
    """
    shown = rows.with_columns(rollout=pl.col("rollout_id").replace(dict(rollouts)))
    extreme = max((abs(v) for v in rows["value"].drop_nulls()), default=0.0) or 1.0
    low, high = (-extreme, extreme) if signed else (_extreme(rows, "min"), _extreme(rows, "max"))
    colour = alt.Color(
        "value:Q",
        title=title,
        scale=alt.Scale(scheme="blueorange" if signed else "cividis", domain=[low, high], reverse=signed),
    )
    # numbers must be read on dark cells too
    dark: Any = f"abs(datum.value) > {0.62 * extreme}" if signed else f"datum.value < {low + 0.5 * (high - low)}"
    x = alt.X(
        "condition:N",
        sort=condition_order(rows["condition"].to_list()),
        title=None,
        axis=alt.Axis(labelAngle=-30, labelOverlap=False, orient="top"),  # every column has its name
    )
    y: Any = alt.Y("rollout:N", sort=list(rollouts.values()), title=None)
    base = alt.Chart(shown).encode(x=x, y=y)
    tooltip = [
        alt.Tooltip("rollout:N"),
        alt.Tooltip("condition:N"),
        *(alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("value", "low", "high")),
        alt.Tooltip("n_contexts:Q", title="contexts"),
    ]
    cells = base.mark_rect(cursor="pointer").encode(color=colour, tooltip=tooltip)
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format="+.2f"), color=alt.condition(dark, alt.value("white"), alt.value("black"))
    )
    chart = alt.layer(cells.add_params(_pick("rollout_id", "condition")), numbers)
    return cast(alt.LayerChart, chart.properties(height=alt.Step(24)))


def _extreme(rows: pl.DataFrame, which: str) -> float:
    value = getattr(rows["value"], which)()
    return 0.0 if value is None else float(value)


def saw_chart(rows: pl.DataFrame, *, rollouts: Mapping[str, str]) -> alt.LayerChart:
    """Who saw whom under one condition: lines from the peers on the left to the targets on the right.

    Args:
        rows: ``mopd.browsing.who_saw_whom`` of one protocol and condition.
        rollouts: what to call each rollout, in the order of the rows.
    """
    names = dict(rollouts)
    shown = rows.with_columns(
        pl.col("peer_id").replace(names).alias("peer"),
        pl.col("target_id").replace(names).alias("target"),
        share=pl.col("n_units") / pl.col("n_target_units"),
        left=pl.lit("peers (shown)"),
        right=pl.lit("targets (scored)"),
    )
    sides = ["peers (shown)", "targets (scored)"]
    order = list(rollouts.values())
    x = alt.X(
        "left:N", sort=sides, title=None, scale=alt.Scale(domain=sides), axis=alt.Axis(orient="top", labelAngle=0)
    )
    y: Any = alt.Y("peer:N", sort=order, scale=alt.Scale(domain=order), title=None)
    roles = ["success", "failure", "feedback"]
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("peer", "role", "target")),
        alt.Tooltip("n_units:Q", title="comparisons in which it was shown"),
        alt.Tooltip("n_target_units:Q", title="of the target's comparisons"),
    ]
    colour = alt.Color("role:N", title="shown as", scale=alt.Scale(domain=roles, range=[BLUE, ORANGE, "#805abe"]))
    dash = alt.StrokeDash("role:N", title="shown as", scale=alt.Scale(domain=roles, range=[[1, 0], [6, 3], [2, 2]]))
    lines = (
        alt.Chart(shown)
        .mark_rule()
        .encode(
            x=x,
            x2="right:N",
            y=y,
            y2="target:N",
            color=colour,
            strokeDash=dash,
            strokeWidth=alt.StrokeWidth("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.6, 3.5]), legend=None),
            opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.35, 0.9]), legend=None),
            tooltip=tooltip,
        )
    )
    ends = pl.DataFrame({"rollout": order * 2, "side": [sides[0]] * len(order) + [sides[1]] * len(order)})
    points = (
        alt.Chart(ends)
        .mark_point(filled=True, size=60, color=GREY, opacity=1)
        .encode(x=alt.X("side:N", sort=sides), y=alt.Y("rollout:N", sort=order), tooltip=["rollout:N", "side:N"])
    )
    return cast(alt.LayerChart, alt.layer(lines, points).properties(height=max(220, 26 * len(order))))


def _sides(rows: pl.DataFrame, names: tuple[str, str]) -> tuple[pl.DataFrame, alt.Scale, alt.Scale]:
    """The rows with ``side`` in the studies' own names, its colours and its shapes."""
    domain = [f"{names[1]} higher", "equal", f"{names[0]} higher"]
    named = rows.with_columns(pl.col("side").replace({"second higher": domain[0], "first higher": domain[2]}))
    shapes = ["triangle-up", "circle", "square"]
    return named, alt.Scale(domain=domain, range=[BLUE, GREY, ORANGE]), alt.Scale(domain=domain, range=shapes)


def scatter_chart(
    rows: pl.DataFrame, *, names: tuple[str, str], metric: str, bounds: tuple[float, float] | None
) -> alt.LayerChart:
    """Groups by their value in two studies; above the diagonal the second is higher.

    Args:
        rows: ``analysis.compare.compare_values``.
        names: of the two.
        metric: its name.
        bounds: of the metric, if it has any.
    """
    scale = alt.Scale(domain=list(bounds)) if bounds else alt.Scale(zero=False)
    shown, colours, shapes = _sides(rows, names)
    points = (
        alt.Chart(shown)
        .mark_point(filled=True, size=70, opacity=0.75, cursor="pointer")
        .encode(
            x=alt.X("first:Q", title=f"{metric}, {names[0]}", scale=scale),
            y=alt.Y("second:Q", title=f"{metric}, {names[1]}", scale=scale),
            color=alt.Color("side:N", title=None, scale=colours),
            shape=alt.Shape("side:N", title=None, scale=shapes),
            tooltip=[
                alt.Tooltip("question:N"),
                alt.Tooltip("condition:N"),
                *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("first", "second", "difference")),
            ],
        )
        .add_params(_pick("second_group"))
    )
    values = [*rows["first"].drop_nulls(), *rows["second"].drop_nulls()]
    ends = list(bounds) if bounds else [min(values, default=0.0), max(values, default=1.0)]
    diagonal = alt.Chart(pl.DataFrame({"a": ends, "b": ends})).mark_line(strokeDash=[4, 4], color=GREY)
    return cast(alt.LayerChart, alt.layer(diagonal.encode(x="a:Q", y="b:Q"), points).properties(height=320))


def difference_chart(rows: pl.DataFrame, *, names: tuple[str, str], metric: str) -> alt.Chart:
    """Each group's difference as a bar from 0, the largest gain first; up or down is said by side, sign and colour.

    Args:
        rows: ``analysis.compare.compare_values``.
        names: of the two.
        metric: its name.
    """
    shown, colours, _ = _sides(rows, names)
    return (
        alt.Chart(shown.sort("difference", descending=True, nulls_last=True).with_row_index("place"))
        .mark_bar()
        .encode(
            x=alt.X("place:O", title="groups, largest gain first", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("difference:Q", title=f"{metric}: {names[1]} − {names[0]}"),
            color=alt.Color("side:N", title=None, scale=colours),
            tooltip=["question:N", "condition:N", alt.Tooltip("difference:Q", format="+.3f")],
        )
        .properties(height=320)
    )


def curve_chart(rows: pl.DataFrame, *, title: str) -> alt.Chart:
    """One or more series over training steps, told apart by colour, dash and point shape.

    Args:
        rows: ``step, series, value, n``.
        title: words for the value axis.
    """
    return (
        alt.Chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=50, filled=True))
        .encode(
            x=alt.X("step:Q", title="training step", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", title=None, scale=alt.Scale(scheme="tableau10")),
            strokeDash=alt.StrokeDash("series:N", title=None),
            shape=alt.Shape("series:N", title=None),
            tooltip=["step:Q", "series:N", alt.Tooltip("value:Q", format=".4f"), "n:Q"],
        )
        .properties(height=240)
    )


def chart_png(chart: alt.TopLevelMixin, *, width: int = 760) -> bytes:
    """The chart as a PNG at twice its size, on white."""
    import vl_convert  # 30 MB, needed only when somebody wants a file

    spec: dict[str, Any] = chart.to_dict()
    spec.setdefault("width", width)
    return vl_convert.vegalite_to_png(spec, scale=2)
