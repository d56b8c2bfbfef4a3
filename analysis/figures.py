"""The sections of a report: each with its figures, their tables, and a line where something was not made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from analysis import charts
from analysis.finished import FinishedStudy
from analysis.findings import LEVEL, SCORES_SHOWN
from mopd.conditions import CONTROLS
from mopd.contrasts import EQUIVALENCE_MARGIN, PRIMARY
from mopd.difficulty import STRATA, difficulty_table
from mopd.dose import surface_table
from mopd.metrics import METRICS

__all__ = ["Figure", "Section", "sections"]

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


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with the table that it draws; a figure without a chart is a table alone."""

    key: str
    caption: str
    table: pl.DataFrame
    chart: Any = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its figures; ``missing`` says what was not made and which command makes it."""

    key: str
    title: str
    text: str = ""
    figures: list[Figure] = field(default_factory=list)
    missing: str = ""


def sections(study: FinishedStudy) -> list[Section]:
    """All sections that are made of tables, in order."""
    makers = (
        headline, pairs, tasks, contrasts, controls, dose, copying, localisation, confounds, calibration, difficulty,
        training_view, counts,
    )  # fmt: skip
    made = [maker(study) for maker in makers]
    return [section for section in made if section is not None]


def again(study: FinishedStudy, flags: str) -> str:
    """The command that makes what is missing."""
    arguments = study.info.get("arguments", {})
    rollouts = f" --rollouts {arguments['rollouts']}" if arguments.get("rollouts") else ""
    teacher = arguments.get("teacher", "hf")
    who = f" --model {arguments['model']}" if teacher == "hf" and arguments.get("model") else f" --teacher {teacher}"
    return f"python -m analysis.signal_quality{rollouts}{who} {flags}"


def _metrics(study: FinishedStudy, protocol: str, names: Sequence[str]) -> pl.DataFrame:
    return study.tables["metrics"].filter(
        pl.col("task") == (study.task or ""),
        pl.col("protocol") == protocol,
        pl.col("metric").is_in(list(names)),
        pl.col("score").is_in(SCORES_SHOWN),
    )


def _sorted(rows: pl.DataFrame, *first: str) -> pl.DataFrame:
    """Rows by ``first``, then by condition as tables show them."""
    place = {name: i for i, name in enumerate(charts.condition_order(set(rows["condition"])))}
    rank = pl.col("condition").replace_strict(place, return_dtype=pl.Int64) if place else pl.lit(0)
    return rows.sort(*first, rank, maintain_order=True)


def headline(study: FinishedStudy) -> Section:
    """Six metrics by condition, where targets were compared in lists."""
    section = {"key": "headline", "title": "Six metrics under every condition"}
    rows = _metrics(study, "split", SIX)
    if rows.is_empty():
        flags = "--protocol leave_pair_out split"
        words = "The six metrics compare lists of targets, which no protocol of this study has; made by: "
        return Section(**section, missing=words + again(study, flags))
    panels = [(name, TITLES[name], METRICS[name].chance) for name in SIX]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score")
    caption = (
        f"How well a score ranks successes above failures, protocol split, mean over groups with "
        f"{_percent(study)} intervals. The dashed line is chance; AUPRC − prevalence and top-1 have no common level of "
        "chance. The same targets under every condition."
    )
    figure = Figure(key="headline", caption=caption, table=_sorted(rows, "score", "metric"), chart=chart)
    return Section(**section, figures=[figure])


def pairs(study: FinishedStudy) -> Section:
    """AUC and margin of pairs: the metrics that claims rest on."""
    section = {"key": "pairs", "title": "Pairs of a success and a failure under one context"}
    rows = _metrics(study, "leave_pair_out", ("auc", "margin"))
    if rows.is_empty():
        words = "No pairs were compared; made by: "
        return Section(**section, missing=words + again(study, "--protocol leave_pair_out"))
    panels = [(name, TITLES[name], METRICS[name].chance) for name in ("auc", "margin")]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score", columns=2)
    caption = (
        f"AUC and margin under leave_pair_out, mean over groups with {_percent(study)} intervals, on the same pairs for "
        "every condition. The dashed line is chance. Under question_only, delta_mean is 0 by definition."
    )
    figure = Figure(key="pairs", caption=caption, table=_sorted(rows, "score", "metric"), chart=chart)
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
    panels = [(name, f"AUC, {name}", 0.5) for name in study.tasks]
    chart = charts.panels_chart(rows, panel="task", panels=panels, colour="score")
    caption = f"AUC by task, protocol {study.fair_protocols[0]}. Each task has its own groups."
    figure = Figure(key="tasks", caption=caption, table=_sorted(rows, "task", "score"), chart=chart)
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
    ordered = _sorted(rows.sort("family", maintain_order=True), "score", "family")
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
    band = f"The grey band is the margin of equivalence, ±{EQUIVALENCE_MARGIN:g}."
    figures = _forest(
        primary, "contrasts_primary", f"The declared differences, paired by group; p-values adjusted by Holm. {band}"
    )
    figures += _forest(
        rest,
        "contrasts_rest",
        f"Every other condition against {reference}, not declared beforehand; p-values adjusted by Benjamini and "
        f"Hochberg. {band}",
    )
    missing = ""
    if primary.is_empty():
        missing = f"No declared difference was run; made by: {again(study, f'--conditions {PRIMARY[0]} {PRIMARY[1][0]}')}"
    text = "Paired differences on common support. An interval across 0 is not a difference, and not its absence either."
    return Section(key="contrasts", title="Contrasts", text=text, figures=figures, missing=missing)


def controls(study: FinishedStudy) -> Section:
    """The lead condition against each control, and what is left when controls are subtracted."""
    rows = _contrasts(study).filter(pl.col("condition") == PRIMARY[0], pl.col("reference").is_in(CONTROLS))
    caption = f"{PRIMARY[0]} minus each control: what is lost when one thing about the peers is changed."
    figures = _forest(rows, "controls", caption)
    derived = study.table("derived")
    if derived is not None:
        here = derived.filter(
            pl.col("task") == (study.task or ""), pl.col("protocol") == (study.fair_protocols or [""])[0]
        )
        here = here.filter(pl.col("score") != "delta_sum")
        if not here.is_empty():
            figures.append(_derived(here, study))
    lacking = [name for name in CONTROLS if name not in study.info["config"]["conditions"]]
    missing = ""
    if lacking:
        command = again(study, "--conditions default controls")
        missing = f"{len(lacking)} of {len(CONTROLS)} controls were not run ({', '.join(lacking)}); made by: {command}"
    return Section(key="controls", title="Controls", figures=figures, missing=missing)


def _derived(here: pl.DataFrame, study: FinishedStudy) -> Figure:
    drawn = here.rename({"quantity": "condition"})
    panels = [
        (name, f"{name}, nats per token", 0.0)
        for name in ("success", "failure", "success - failure")
        if name in set(drawn["targets"])
    ]
    chart = charts.panels_chart(drawn, panel="targets", panels=panels, colour="score")
    caption = (
        "Derived quantities: specificity (Δ with peers of this prompt minus Δ with peers of another), label effect (Δ "
        "with true headings minus Δ with swapped ones), shell effect (Δ of the wording alone), copy component (log-prob "
        f"with the peers but no question), of successes, of failures and their difference, {_percent(study)} intervals."
    )
    return Figure(key="derived", caption=caption, table=here, chart=chart)


def dose(study: FinishedStudy) -> Section:
    """The response surface over successes and failures, by order of the blocks."""
    section = {"key": "dose", "title": "Dose and order"}
    protocol = (study.fair_protocols or [""])[0]
    cells = surface_table(_metrics(study, protocol, ("auc",)))
    missing = ""
    if cells.filter(pl.col("order") == "successes_first").height < 4:
        missing = f"Fewer than four doses were run; made by: {again(study, '--sweep 3 2 --orders failures_first')}"
    if cells.is_empty():
        return Section(**section, missing=missing)
    scores = [s for s in SCORES_SHOWN if s in set(cells["score"])]
    chart = charts.surface_chart(cells, columns=scores, centre=0.5)
    caption = (
        f"AUC by the number of successes and failures shown, protocol {protocol}, with {_percent(study)} intervals in "
        "brackets; 0 and 0 is the wording without a peer. All cells rest on the same pairs. Colour: blue above 0.5, "
        "orange below."
    )
    figures = [Figure(key="surface", caption=caption, table=cells, chart=chart)]
    orders = _contrasts(study).filter(pl.col("condition").str.starts_with(pl.col("reference") + "_"))
    words = "Another order of the same blocks against successes first, paired by group."
    return Section(**section, figures=figures + _forest(orders, "orders", words), missing=missing)


def copying(study: FinishedStudy) -> Section:
    """AUC on tokens of a kind, against that of all tokens of the same targets."""
    section = {"key": "copying", "title": "Copied and novel tokens"}
    table = study.table("marks")
    if table is None or "mark" not in table.columns:
        command = f"python -m analysis.signal_quality --resume --output {study.path}"
        return Section(**section, missing=f"Tokens were not marked; made by: {command} with the study's own options.")
    rows = table.filter(
        pl.col("task") == (study.task or ""), pl.col("protocol") == (study.fair_protocols or [""])[0]
    )
    drawn = rows.filter(pl.col("quantity").is_in(["auc", "auc_all_tokens"]), pl.col("value").is_not_null())
    if drawn.is_empty():
        return Section(**section, missing="No target has tokens of the kinds that can be told apart.")
    wanted = ("copied", "novel", "novel_non_answer", "answer", "non_answer", "high_entropy")
    words = [(m, f"AUC, {m.replace('_', ' ')} tokens", 0.5) for m in wanted if m in set(drawn["mark"])]
    drawn = drawn.with_columns(
        tokens=pl.col("quantity").replace_strict({"auc": "these tokens", "auc_all_tokens": "all tokens"})
    )
    chart = charts.panels_chart(drawn, panel="mark", panels=words, colour="tokens")
    caption = (
        "AUC of Δ over tokens of one kind, beside that over all tokens of the same targets: what copying a peer or "
        "matching its answer cannot explain is what is left on novel tokens outside the answer."
    )
    return Section(**section, figures=[Figure(key="copying", caption=caption, table=rows, chart=chart)])


def localisation(study: FinishedStudy) -> Section:
    """Where the signal falls: on the first error or elsewhere."""
    section = {"key": "localisation", "title": "Does the signal fall on the error?"}
    words = "Errors were not located; made by: python -m analysis.localisation " + str(study.path)
    caption = "How well −Δ finds the step of the first error that a checker marks, by condition."
    return _values(study, "localisation", section, words, caption)


def confounds(study: FinishedStudy) -> Section:
    """Length, similarity to the peers, and what is left of the AUC given them."""
    section = {"key": "confounds", "title": "Length, similarity and shared answers"}
    command = f"python -m analysis.signal_quality --resume --output {study.path}"
    words = f"Confounds were not measured; made by: {command} with the study's own options."
    return _values(study, "confounds", section, words, "What is left of the ranking when other explanations are held fixed.")


def _values(study: FinishedStudy, name: str, section: dict[str, str], missing: str, caption: str) -> Section:
    """A table of values by condition, a panel per metric (and stratum); without intervals or conditions a table alone."""
    table = study.table(name)
    if table is None:
        return Section(**section, missing=missing)
    rows = table
    if "task" in rows.columns:
        rows = rows.filter(pl.col("task") == (study.task or ""))
    if "protocol" in rows.columns:
        rows = rows.filter(pl.col("protocol") == (study.fair_protocols or [""])[0])
    if rows.is_empty():
        return Section(**section, missing=f"{name}.parquet has no row for what was compared.")
    return Section(**section, figures=[Figure(key=name, caption=caption, table=rows, chart=_value_panels(rows))])


def _value_panels(rows: pl.DataFrame) -> Any:
    kinds = [c for c in ("measure", "metric", "quantity", "stratum") if c in rows.columns]
    if not kinds or not {"condition", "value", "ci_low", "ci_high"} <= set(rows.columns):
        return None
    drawn = rows.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        return None
    drawn = drawn.with_columns(panel=pl.concat_str(kinds, separator=", ", ignore_nulls=True))
    if "score" in drawn.columns:
        drawn = drawn.filter(pl.col("score").is_in(SCORES_SHOWN) | ~pl.col("score").is_in(SCORES_SHOWN).any())
    colour = next((c for c in ("score", "kind", "source") if c in drawn.columns), None)
    drawn = drawn if colour else drawn.with_columns(shown=pl.lit("value"))
    panels = [(name, name, None) for name in drawn["panel"].unique(maintain_order=True)]
    return charts.panels_chart(drawn, panel="panel", panels=panels, colour=colour or "shown")


def calibration(study: FinishedStudy) -> Section:
    """Reliability curves of Platt's probabilities, and the Brier score with its parts."""
    section = {"key": "calibration", "title": "Calibration"}
    table, curves = study.table("calibration"), study.table("reliability")
    here = pl.col("task") == (study.task or ""), pl.col("protocol") == "split", pl.col("score").is_in(SCORES_SHOWN)
    if table is None or curves is None or table.filter(*here).is_empty():
        command = again(study, "--protocol leave_pair_out split")
        return Section(**section, missing=f"Probabilities need lists of targets; made by: {command}")
    lead, rivals = PRIMARY
    there = set(table["condition"])
    shown = [name for name in (lead, *rivals) if name in there] or charts.condition_order(there)[:6]
    figures = []
    for method, words in (("platt", "Platt's logistic curve"), ("isotonic", "isotonic regression")):
        part = curves.filter(*here, pl.col("method") == method, pl.col("condition").is_in(shown))
        if part.is_empty():
            continue
        caption = (
            f"Share of successes against forecast in ten bins of equal number, {words} fitted on other prompts; the "
            "dashed line is perfect calibration."
        )
        key = f"reliability_{method}"
        chart = charts.reliability_chart(part, panels=shown)
        figures.append(Figure(key=key, caption=caption, table=_sorted(part, "score"), chart=chart))
    caption = "Brier score (lower is better) = reliability − resolution + uncertainty + what is lost within bins; ECE."
    figures.append(Figure(key="calibration", caption=caption, table=_sorted(table.filter(*here), "score", "method")))
    return Section(**section, figures=figures)


def difficulty(study: FinishedStudy) -> Section:
    """AUC by the success rate of the group."""
    section = {"key": "difficulty", "title": "Difficulty"}
    config = study.info["config"]
    table = difficulty_table(
        study.tables["group_values"].filter(
            pl.col("metric") == "auc",
            pl.col("score").is_in(SCORES_SHOWN),
            pl.col("protocol") == (study.fair_protocols or [""])[0],
        ),
        study.tables["rollouts"],
        draws=config["draws"],
        seed=config["seed"],
        confidence=study.confidence,
    ).filter(pl.col("task") == (study.task or ""))
    if table.is_empty():
        return Section(**section, missing="No group defines an AUC.")
    groups = dict(table.group_by("stratum").agg(pl.col("n_groups").max()).iter_rows())
    panels = [
        (name, f"AUC, success rate {name} ({groups[name]} group{'s' * (groups[name] != 1)})", 0.5)
        for name in STRATA
        if name in groups
    ]
    chart = charts.panels_chart(table, panel="stratum", panels=panels, colour="score", columns=2)
    caption = (
        f"AUC by the share of successes among a group's rollouts, {_percent(study)} intervals. Strata have few groups "
        "each and are not tested against one another."
    )
    return Section(**section, figures=[Figure(key="difficulty", caption=caption, table=table, chart=chart)])


def training_view(study: FinishedStudy) -> Section | None:
    """What the confounded protocol shows, marked as such."""
    rows = _metrics(study, "self_exclusion", SIX)
    if rows.is_empty():
        return None
    panels = [(name, TITLES[name], METRICS[name].chance) for name in SIX]
    chart = charts.panels_chart(rows, panel="metric", panels=panels, colour="score")
    caption = (
        "CONFOUNDED: under self_exclusion, as in training, a target's context depends on its own label. Not a test of "
        "anything."
    )
    figure = Figure(key="training_view", caption=caption, table=_sorted(rows, "score", "metric"), chart=chart)
    return Section(key="training_view", title="As training sees it (confounded)", figures=[figure])


def counts(study: FinishedStudy) -> Section:
    """What took part and what did not, and why."""
    counted = study.info["counts"]
    figures = []
    units = _units(study)
    if not units.is_empty():
        chart = charts.counts_chart(units, title="pairs or lists of targets")
        caption = (
            f"What became of the units of comparison under {(study.fair_protocols or ['?'])[0]}. A unit that one "
            "condition cannot serve is left out under all."
        )
        figures.append(Figure(key="counts", caption=caption, table=units, chart=chart))
    numbers = [(name.replace("_", " "), value) for name, value in counted.items() if isinstance(value, int)]
    numbers += [(f"dropped: {reason.replace('_', ' ')}", n) for reason, n in counted["dropped"].items()]
    table = pl.DataFrame(numbers, schema={"what": pl.String, "number": pl.Int64}, orient="row")
    figures.append(Figure(key="dropped", caption="Everything that was counted.", table=table))
    return Section(key="counts", title="What took part, and what did not", figures=figures)


def _units(study: FinishedStudy) -> pl.DataFrame:
    """Condition, outcome and number of units under the first fair protocol."""
    protocol = (study.fair_protocols or [""])[0]
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
    rank = pl.col("outcome").str.starts_with("undefined").cast(pl.Int8) + (pl.col("outcome") != "compared").cast(pl.Int8)
    return _sorted(units.sort(rank, "outcome")).sort(rank, "outcome", maintain_order=True)


def _percent(study: FinishedStudy) -> str:
    return f"{100 * study.confidence:g}%"
