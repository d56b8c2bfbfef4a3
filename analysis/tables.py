"""Study tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from mopd.conditions import condition, rank
from mopd.contrasts import PRIMARY
from mopd.dose import surface_table
from mopd.inference import fewest_groups
from mopd.power import plan
from mopd.study import Study

__all__ = ["SCORE_NOTE", "counts_text", "power_text", "protocol_tables", "surface_text", "text_table"]

SHOWN = {
    "leave_pair_out": ("auc", "margin"),
    "split": ("auc", "auprc_lift", "spearman", "top1"),
    "self_exclusion": ("auc", "auprc_lift", "spearman", "top1"),
}
TITLES = {"auc": "AUC", "margin": "margin", "auprc_lift": "AUPRC lift", "spearman": "Spearman", "top1": "top-1"}
SCORE_NOTE = {
    "teacher_mean": "mean teacher log-prob of a response, nats per token",
    "delta_mean": "mean of teacher minus student log-prob, nats per token",
    "delta_sum": "sum of teacher minus student log-prob, nats",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by width, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def protocol_tables(study: Study, score: str) -> str:
    """One table per protocol: each condition's metrics with intervals, and its AUC difference to the reference."""
    parts = []
    for protocol in study.info["config"]["protocols"]:
        if protocol not in SHOWN:
            continue
        rows = study.metrics.filter(
            (pl.col("protocol") == protocol) & (pl.col("score") == score) & (pl.col("task") == _widest_task(study))
        )
        if rows.is_empty():
            parts.append(f"protocol {protocol}: no unit can be compared under every condition; all undefined")
            continue
        parts.append(_protocol_table(study, protocol, score, rows))
    return "\n\n".join(parts)


def power_text(study: Study, score: str) -> str:
    """What this study, read as a pilot, says of the groups that a larger one needs."""
    table = plan(study.contrasts).filter(
        (pl.col("score") == score)
        & (pl.col("task") == _widest_task(study))
        & (pl.col("protocol") == study.info["config"]["protocols"][0])
    )
    title = f"plan from this study as a pilot, AUC of {score}, 80% power"
    if table.is_empty():
        return f"{title}: none of the primary differences was run (2s1f against {', '.join(PRIMARY[1])})"
    level = f"{table['alpha'].item(0):.3g}"
    title += f", two-sided level {level}" + (f" (0.05 / {table.height} differences)" if table.height > 1 else "")
    body = [
        [
            f"{row['condition']} - {row['reference']}",
            str(row["n_groups"]),
            _number(row["sd"]),
            _number(row["detectable"]),
            _number(row["difference"], "{:+.3f}"),
            "undefined" if row["groups_needed"] is None else f"{row['groups_needed']:,}",
        ]
        for row in table.iter_rows(named=True)
    ]
    header = ["difference", "groups", "sd", "detectable", "observed", "groups to find it"]
    return "\n".join([title, text_table(header, body)])


def surface_text(study: Study, score: str) -> str:
    """The AUC of each cell of the grid: successes down, failures across, a table per order of the blocks."""
    protocol = study.info["config"]["protocols"][0]
    cells = surface_table(study.metrics).filter(
        (pl.col("score") == score)
        & (pl.col("metric") == "auc")
        & (pl.col("task") == _widest_task(study))
        & (pl.col("protocol") == protocol)
    )
    parts = []
    for (order,), part in cells.group_by("order", maintain_order=True):
        at = {(r["successes"], r["failures"]): r for r in part.iter_rows(named=True)}
        rows, columns = sorted({k for k, _ in at}), sorted({m for _, m in at})
        body = [
            [
                _number_of(k, "success", "successes"),
                *(_with_interval(at[k, m], "value") if (k, m) in at else "not run" for m in columns),
            ]
            for k in rows
        ]
        title = f"surface: AUC of {score} under {protocol} by dose, blocks {order.replace('_', ' ')}"
        parts.append(
            "\n".join([title, text_table(["", *(_number_of(m, "failure", "failures") for m in columns)], body)])
        )
    return "\n\n".join(parts) or "surface: no condition of the grid was compared"


def _number_of(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _number(value: float | None, form: str = "{:.3f}") -> str:
    return "undefined" if value is None else form.format(value)


def _widest_task(study: Study) -> str:
    tasks = study.metrics["task"].unique().to_list()
    return "all" if "all" in tasks else tasks[0]


def _protocol_table(study: Study, protocol: str, score: str, rows: pl.DataFrame) -> str:
    names = SHOWN[protocol]
    confidence = f"{100 * study.info['config']['confidence']:g}%"
    reference = study.info["config"]["reference"]
    values = {(r["condition"], r["metric"]): r for r in rows.iter_rows(named=True)}
    contrasts = {
        r["condition"]: r
        for r in study.contrasts.filter(
            (pl.col("protocol") == protocol)
            & (pl.col("score") == score)
            & (pl.col("metric") == "auc")
            & (pl.col("reference") == reference)
            & (pl.col("task") == _widest_task(study))
        ).iter_rows(named=True)
    }
    header = ["condition"] + [f"{TITLES[n]} [{confidence} CI]" for n in names]
    if contrasts:
        header += [f"AUC - {reference} [{confidence} CI]", "p (adjusted)"]
    body = []
    for name in sorted({c for c, _ in values}, key=lambda name: rank(condition(name))):
        line = [f"{name} ({condition(name).label})"] + [_with_interval(values.get((name, n)), "value") for n in names]
        if contrasts:
            contrast = contrasts.get(name)
            same = name == reference
            line.append("(reference)" if same else _with_interval(contrast, "difference", sign=True))
            line.append("" if same else _p_value(contrast))
        body.append(line)
    auc = rows.filter(pl.col("metric") == "auc")
    n_groups, n_pairs = auc["n_groups"].max(), auc["n_pairs"].max()
    title = (
        f"{protocol}, score {score} ({SCORE_NOTE[score]}): {n_groups} groups, {n_pairs} pairs, "
        "the same for every condition"
    )
    notes = []
    if protocol in study.info["confounded"]:
        notes.append(
            "confounded: a target's context depends on its own label; read it as training's view, not as a test"
        )
    if isinstance(n_groups, int) and n_groups < (fewest := fewest_groups(study.info["config"]["confidence"])):
        notes.append(f"fewer than {fewest} groups: too few for an interval of {confidence}")
    return "\n".join([title, text_table(header, body), *(f"note: {n}" for n in notes)])


def _with_interval(row: Mapping[str, Any] | None, key: str, *, sign: bool = False) -> str:
    if row is None or row[key] is None:
        return "undefined"
    f = "{:+.3f}" if sign or row["metric"] == "margin" else "{:.3f}"
    text = f.format(row[key])
    if row["ci_low"] is None or row["ci_high"] is None:
        return f"{text} [no interval]"
    return f"{text} [{f.format(row['ci_low'])}, {f.format(row['ci_high'])}]"


def _p_value(row: Mapping[str, Any] | None) -> str:
    if row is None or row["p_adjusted"] is None:
        return "undefined"
    return "<0.001" if row["p_adjusted"] < 0.001 else f"{row['p_adjusted']:.3f}"


def counts_text(study: Study) -> str:
    """What took part, and what did not and why."""
    counts = study.info["counts"]
    lines = [
        f"groups: {counts['groups_compared']} compared of {counts['groups']} looked at"
        + (
            f" ({counts['groups_not_looked_at']} more in the file, beyond --limit)"
            if counts["groups_not_looked_at"]
            else ""
        )
    ]
    if counts["groups_without_common_support"]:
        lines.append(
            f"{counts['groups_without_common_support']} mixed groups have no pair that every condition can serve"
        )
    if counts["dropped"]:
        lines.append("dropped: " + ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items()))
    for protocol, units in counts["units"].items():
        kind = "pairs" if protocol == "leave_pair_out" else "units"
        missing = counts["undefined"].get(protocol, {})
        why = "; ".join(
            f"{name} {', '.join(f'{n} {reason}' for reason, n in reasons.items())}"
            for name, reasons in sorted(missing.items(), key=lambda item: rank(condition(item[0])))
        )
        lines.append(
            f"{protocol}: {units['units_compared']} of {units['units']} {kind} compared"
            + (f"; {units['units_of_one_class']} without both classes" if units["units_of_one_class"] else "")
            + (f"; undefined under {why}" if why else "")
        )
    for key, words in (
        ("retokenised_responses", "responses tokenised from their text (no exact ids of this tokenizer)"),
        ("shortened_contexts", "contexts had peers shortened"),
    ):
        if counts[key]:
            lines.append(f"{counts[key]} {words}")
    return "\n".join(lines)
