"""The sections of a report that say what was found: metrics, contrasts, controls, dose, calibration and counts."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.charts import condition_order
from analysis.reporting import charts
from analysis.reporting.explanations import confounds, copying, difficulty, localisation
from analysis.reporting.figures import Figure, Section, again, by_condition, few_groups, metric_rows, percent, sized
from analysis.reporting.findings import LEVEL, SCORES_SHOWN
from analysis.reporting.finished import FinishedStudy
from mopd.conditions import CONTROLS
from mopd.contrasts import EQUIVALENCE_MARGIN, PRIMARY
from mopd.dose import surface_table
from mopd.metrics import METRICS

__all__ = ["sections"]

SIX = ("auc", "auprc_lift", "spearman", "kendall_tau_b", "point_biserial", "top1")
TITLES = {
    "auc": "AUC",
    "margin": "margin, nats per token",
    "auprc_lift": "AUPRC − prevalence",
    "spearman": "Spearman ρ",
    "kendall_tau_b": "Kendall τ-b",
    "goodman_kruskal_gamma": "Goodman-Kruskal γ",
    "point_biserial": "point-biserial r",
    "top1": "top-1 is a success",
}


BAND = f"The grey band is the margin of equivalence, ±{EQUIVALENCE_MARGIN:g}."
ADJUSTED = (
    "P-values of declared differences are adjusted by Holm, the others (column family: rest) by Benjamini and "
    f"Hochberg. {BAND}"
)


def sections(study: FinishedStudy) -> list[Section]:
    """All sections that are made of tables, in order."""
    makers = (
        headline, pairs, tasks, contrasts, controls, dose, copying, localisation, confounds, calibration, difficulty,
        training_view, counts,
    )  # fmt: skip
    made = [maker(study) for maker in makers]
    return [section for section in made if section is not None]


def headline(study: FinishedStudy) -> Section:
    """Six metrics by condition, where targets were compared in lists."""
    section: dict[str, Any] = {"key": "headline", "title": "Six metrics under every condition"}
    rows = metric_rows(study, "split", SIX)
    if rows.is_empty():
        flags = "--protocol leave_pair_out split"
        words = "The six metrics compare lists of targets, which no protocol of this study has; made by: "
        return Section(**section, missing=words + again(study, flags))
    panels = [(name, TITLES[name], METRICS[name].chance) for name in SIX]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score")
    caption = (
        f"How well a score ranks successes above failures, protocol split, mean over groups with "
        f"{percent(study)} intervals. The dashed line is chance; AUPRC − prevalence and top-1 have no common level of "
        "chance. The same targets under every condition. A score that is the same for all targets has no correlation, "
        f"so no point.{few_groups(rows)}"
    )
    figure = Figure(key="headline", caption=caption, table=by_condition(rows, "score", "metric"), chart=chart)
    return Section(**section, figures=[figure])


def pairs(study: FinishedStudy) -> Section:
    """AUC and margin of pairs: the metrics that claims rest on."""
    section: dict[str, Any] = {"key": "pairs", "title": "Pairs of a success and a failure under one context"}
    rows = metric_rows(study, "leave_pair_out", ("auc", "margin"))
    if rows.is_empty():
        words = "No pairs were compared; made by: "
        return Section(**section, missing=words + again(study, "--protocol leave_pair_out"))
    panels = [(name, TITLES[name], METRICS[name].chance) for name in ("auc", "margin")]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score", columns=2)
    caption = (
        f"AUC and margin under leave_pair_out, mean over groups with {percent(study)} intervals, on the same pairs for "
        "every condition. The dashed line is chance. Under question_only, delta_mean is 0 by definition."
        f"{few_groups(rows)}"
    )
    figure = Figure(key="pairs", caption=caption, table=by_condition(rows, "score", "metric"), chart=chart)
    return Section(**section, figures=[figure])


def tasks(study: FinishedStudy) -> Section | None:
    """The AUC task by task, if there are several."""
    if len(study.tasks) < 2 or not study.fair_protocols:
        return None
    rows = study.tables["metrics"].filter(
        pl.col("task").is_in(study.tasks),
        pl.col("protocol") == study.fair_protocols[0],
        pl.col("metric") == "auc",
        pl.col("score").is_in(SCORES_SHOWN),
    )
    if rows.is_empty():
        return None
    panels = [(t, [f"AUC, {t}", sized(rows.filter(task=t))], 0.5) for t in study.tasks]
    chart = charts.panels_chart(rows, panel="task", panels=panels, colour="score")
    caption = (
        f"AUC by task, protocol {study.fair_protocols[0]}, {percent(study)} intervals. Each task has its own groups."
        + few_groups(rows)
    )
    figure = Figure(key="tasks", caption=caption, table=by_condition(rows, "task", "score"), chart=chart)
    return Section(key="tasks", title="Task by task", figures=[figure])


def _contrasts(study: FinishedStudy) -> pl.DataFrame:
    protocol = study.fair_protocols[0] if study.fair_protocols else ""
    rows = study.tables["contrasts"].filter(
        pl.col("task") == (study.task or ""),
        pl.col("protocol") == protocol,
        pl.col("metric") == "auc",
        pl.col("score").is_in(SCORES_SHOWN),
    )
    return rows.with_columns(pair=pl.format("{} − {}", "condition", "reference"))


def _forest(rows: pl.DataFrame, key: str, caption: str) -> list[Figure]:
    """A forest plot of the rows, if there are any."""
    if rows.is_empty():
        return []
    place = {name: i for i, name in enumerate(condition_order(set(rows["reference"])))}
    by_reference = rows.sort("family", pl.col("reference").replace_strict(place), maintain_order=True)
    ordered = by_condition(by_reference, "score", "family")
    chart = charts.forest_chart(
        ordered, panel="score", title="difference of AUC", margin=EQUIVALENCE_MARGIN, level=LEVEL
    )
    return [Figure(key=key, caption=caption, table=ordered.drop("pair"), chart=chart)]


def contrasts(study: FinishedStudy) -> Section:
    """The declared family, and the conditions against the reference."""
    rows = _contrasts(study)
    reference = study.info["config"]["reference"]
    primary = rows.filter(pl.col("family") == "primary")
    rest = rows.filter(pl.col("family") == "rest", pl.col("reference") == reference)
    figures = _forest(
        primary, "contrasts_primary", f"The declared differences, paired by group; p-values adjusted by Holm. {BAND}"
    )
    figures += _forest(
        rest,
        "contrasts_rest",
        f"Every other condition against {reference}, not declared beforehand; p-values adjusted by Benjamini and "
        f"Hochberg. {BAND}",
    )
    missing = ""
    if primary.is_empty():
        missing = (
            f"No declared difference was run; made by: {again(study, f'--conditions {PRIMARY[0]} {PRIMARY[1][0]}')}"
        )
    text = "Paired differences on common support. An interval across 0 is not a difference, and not its absence either."
    return Section(key="contrasts", title="Contrasts", text=text, figures=figures, missing=missing)


def controls(study: FinishedStudy) -> Section:
    """The lead condition against each control, and what is left when controls are subtracted."""
    rows = _contrasts(study).filter(pl.col("condition") == PRIMARY[0], pl.col("reference").is_in(CONTROLS))
    caption = f"{PRIMARY[0]} minus each control: what is lost when one thing about the peers is changed. {ADJUSTED}"
    figures = _forest(rows, "controls", caption)
    derived = study.table("derived")
    if derived is not None:
        here = derived.filter(pl.col("task") == (study.task or ""), pl.col("protocol") == study.protocol)
        here = here.filter(pl.col("score") != "delta_sum")
        differences, copied = (
            here.filter((pl.col("quantity") == "copy_component") == is_it) for is_it in (False, True)
        )
        figures += _derived(
            differences,
            study,
            "derived",
            "Derived quantities: specificity (Δ with peers of this prompt minus Δ with peers of another), label effect "
            "(Δ with true headings minus Δ with swapped ones), shell effect (Δ of the wording alone)",
        )
        figures += _derived(
            copied, study, "copy_component", "Copy component: the teacher's log-prob with the peers but no question"
        )
    lacking = [name for name in CONTROLS if name not in study.info["config"]["conditions"]]
    missing = ""
    if lacking:
        command = again(study, "--conditions default controls")
        missing = f"{len(lacking)} of {len(CONTROLS)} controls were not run ({', '.join(lacking)}); made by: {command}"
    return Section(key="controls", title="Controls", figures=figures, missing=missing)


def _derived(here: pl.DataFrame, study: FinishedStudy, key: str, words: str) -> list[Figure]:
    """A panel for successes, for failures, and for their difference, of all quantities that are of one size."""
    if here.is_empty():
        return []
    drawn = here.rename({"quantity": "condition"})
    panels = [
        (name, f"{name.replace(' - ', ' − ')}, nats per token", 0.0 if key == "derived" or " - " in name else None)
        for name in ("success", "failure", "success - failure")
        if name in set(drawn["targets"])
    ]
    chart = charts.panels_chart(drawn, panel="targets", panels=panels, colour="score")
    caption = f"{words}; of successes, of failures and their difference, {percent(study)} intervals.{few_groups(drawn)}"
    return [Figure(key=key, caption=caption, table=here, chart=chart)]


def dose(study: FinishedStudy) -> Section:
    """The response surface over successes and failures, by order of the blocks."""
    section: dict[str, Any] = {"key": "dose", "title": "Dose and order"}
    protocol = study.protocol
    cells = surface_table(metric_rows(study, protocol, ("auc",)))
    missing = ""
    if cells.filter(pl.col("order") == "successes_first").height < 4:
        missing = f"Fewer than four doses were run; made by: {again(study, '--sweep 3 2 --orders failures_first')}"
    if cells.is_empty():
        return Section(**section, missing=missing)
    scores = [s for s in SCORES_SHOWN if s in set(cells["score"])]
    chart = charts.surface_chart(cells, columns=scores, centre=0.5)
    caption = (
        f"AUC by the number of successes and failures shown, protocol {protocol}, with {percent(study)} intervals in "
        "brackets; 0 and 0 is the wording without a peer. All cells rest on the same pairs. Colour: blue above 0.5, "
        "orange below."
    )
    figures = [Figure(key="surface", caption=caption, table=cells, chart=chart)]
    orders = _contrasts(study).filter(pl.col("condition").str.starts_with(pl.col("reference") + "_"))
    words = f"Another order of the same blocks against successes first, paired by group. {ADJUSTED}"
    return Section(**section, figures=figures + _forest(orders, "orders", words), missing=missing)


def calibration(study: FinishedStudy) -> Section:
    """Reliability curves, and the Brier score with its parts; calibrators are fitted task by task."""
    section: dict[str, Any] = {"key": "calibration", "title": "Calibration"}
    table, curves = study.table("calibration"), study.table("reliability")
    here = pl.col("protocol") == "split", pl.col("score").is_in(SCORES_SHOWN)
    if table is None or curves is None or table.filter(*here).is_empty():
        command = again(study, "--protocol leave_pair_out split")
        missing = f"Probabilities need lists of targets; made by: {command}"
        if "split" in study.info["config"]["protocols"]:
            missing = "No calibrator could be fitted: that takes lists of targets from several groups of a task."
        return Section(**section, missing=missing)
    figures = []
    for method, words in (("platt", "Platt's logistic curve"), ("isotonic", "isotonic regression")):
        part = curves.filter(*here, pl.col("method") == method)
        panel, shown, of = _curves_shown(part, study)
        if not shown:
            continue
        part = part.filter(pl.col("condition").is_in(of), pl.col(panel).is_in(shown))
        caption = (
            f"Share of successes against forecast in bins of equal number, at most ten, {words} fitted on other prompts"
            f"{' of the same task' if panel == 'task' else ''}; the dashed line is perfect calibration."
            f"{f' Condition: {of[0]}.' if panel == 'task' else ''}"
        )
        chart = charts.reliability_chart(part, panel=panel, panels=shown)
        key = f"reliability_{method}"
        figures.append(Figure(key=key, caption=caption, table=by_condition(part, "task", "score"), chart=chart))
    caption = (
        "Brier score (lower is better) = reliability − resolution + uncertainty + what is lost within bins. ECE: mean "
        "gap between forecast and share of successes over the bins."
    )
    shown_rows = by_condition(table.filter(*here), "task", "score", "method")
    return Section(**section, figures=[*figures, Figure(key="calibration", caption=caption, table=shown_rows)])


def _curves_shown(curves: pl.DataFrame, study: FinishedStudy) -> tuple[str, list[str], list[str]]:
    """What parts the panels, their values, and the conditions: those of the declared family, or, with several tasks,
    the lead one by task."""
    lead, rivals = PRIMARY
    there = set(curves["condition"])
    shown = [name for name in (lead, *rivals) if name in there] or condition_order(there)[:6]
    if len(study.tasks) > 1:
        return "task", [t for t in study.tasks if t in set(curves["task"])], shown[:1]
    return "condition", shown, shown


def training_view(study: FinishedStudy) -> Section | None:
    """What the confounded protocol shows, marked as such."""
    rows = metric_rows(study, "self_exclusion", SIX)
    if rows.is_empty():
        return None
    panels = [(name, TITLES[name], METRICS[name].chance) for name in SIX]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score")
    caption = (
        "CONFOUNDED: under self_exclusion, as in training, a target's context depends on its own label. Not a test of "
        f"anything.{few_groups(rows)}"
    )
    figure = Figure(key="training_view", caption=caption, table=by_condition(rows, "score", "metric"), chart=chart)
    return Section(key="training_view", title="As training sees it (confounded)", figures=[figure])


def counts(study: FinishedStudy) -> Section:
    """What took part and what did not, and why."""
    counted = study.info["counts"]
    figures = []
    units = _units(study)
    if not units.is_empty():
        chart = charts.counts_chart(units, title="pairs" if study.protocol == "leave_pair_out" else "lists of targets")
        caption = (
            f"What became of the units of comparison under {(study.fair_protocols or ['?'])[0]}. A unit that one "
            "condition cannot serve is left out under all."
        )
        figures.append(Figure(key="counts", caption=caption, table=units, chart=chart))
    numbers = [(name.replace("_", " "), value) for name, value in counted.items() if isinstance(value, int)]
    numbers += [
        (f"{protocol}: {name.replace('_', ' ')}", n)
        for protocol, units_of in counted["units"].items()
        for name, n in units_of.items()
    ]
    numbers += [
        (f"{protocol}: undefined under {name}, {reason.replace('_', ' ')}", n)
        for protocol, conditions in counted["undefined"].items()
        for name, reasons in conditions.items()
        for reason, n in reasons.items()
    ]
    numbers += [(f"dropped: {reason.replace('_', ' ')}", n) for reason, n in counted["dropped"].items()]
    table = pl.DataFrame(numbers, schema={"what": pl.String, "number": pl.Int64}, orient="row")
    figures.append(Figure(key="dropped", caption="Everything that was counted.", table=table))
    return Section(key="counts", title="What took part, and what did not", figures=figures)


def _units(study: FinishedStudy) -> pl.DataFrame:
    """Condition, outcome and number of units under the first fair protocol."""
    protocol = study.protocol
    units = (
        study.tables["assignments"]
        .filter(pl.col("protocol") == protocol)
        .group_by("condition", "group_id", "unit_id")
        .agg(pl.col("supported").any(), pl.col("reason").filter(pl.col("context_id").is_null()).drop_nulls().first())
        .with_columns(
            outcome=pl.when("supported")
            .then(pl.lit("compared"))
            .when(pl.col("reason").is_null())
            .then(pl.lit("left out: undefined elsewhere"))
            .otherwise(pl.lit("undefined: ") + pl.col("reason").str.replace_all("_", " "))
        )
        .group_by("condition", "outcome")
        .agg(units=pl.len().cast(pl.Int64))
    )
    rank = pl.col("outcome").str.starts_with("undefined").cast(pl.Int8) + (pl.col("outcome") != "compared").cast(
        pl.Int8
    )
    return by_condition(units.sort(rank, "outcome")).sort(rank, "outcome", maintain_order=True)
