"""The sections of a report on other explanations: copying, where the signal falls, confounds and difficulty.

Which strata, kinds of tokens and measures there are is fixed by the modules that make the tables; none of them is
tested against another here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from analysis.reporting import charts
from analysis.reporting.figures import Figure, Section, by_condition, few_groups, percent, resumed, sized
from analysis.reporting.findings import SCORES_SHOWN
from analysis.reporting.finished import FinishedStudy
from mopd.partial import GIVEN

__all__ = ["confounds", "copying", "difficulty", "localisation"]

KINDS = ("copied", "novel", "novel_non_answer", "answer", "non_answer", "high_entropy")
SOURCES = {"checker": "equations that a checker finds wrong", "planted": "planted errors"}
LOCATED = {
    "auroc": "AUROC of −Δ over steps",
    "top1": "first error has the lowest Δ",
    "reciprocal_rank": "1 / rank of the first error",
}
MATCHED = ("all", "length matched", "edit matched", "n-gram matched", "length and similarity matched")
ANSWERS = ("same wrong answer", "other wrong answer", "majority right", "majority wrong")
ANSWERS_MEAN = (
    "AUC of pairs whose failure gave the same wrong answer as a failure that its contexts show, or another one; and of "
    "groups whose most common answer is right, or wrong."
)
RATES = {"hard": "up to 1/3 succeed", "medium": "1/3 to 2/3 succeed", "easy": "above 2/3 succeed"}


def copying(study: FinishedStudy) -> Section:
    """AUC on tokens of a kind, against that of all tokens of the same targets."""
    section: dict[str, Any] = {"key": "copying", "title": "Copied and novel tokens"}
    rows = _here(study, "marks")
    if rows is None:
        return Section(**section, missing=f"Tokens were not marked; made by: {resumed(study)}.")
    quantities = {"auc": "these tokens", "auc_all_tokens": "all tokens of the same targets"}
    drawn = rows.filter(pl.col("quantity").is_in(list(quantities)), pl.col("value").is_not_null())
    if drawn.is_empty():
        return Section(**section, missing="No two targets have tokens of a kind that can be told apart.")
    panels = [
        (m, [f"AUC of Δ, {m.replace('_', ' ')}", sized(drawn.filter(mark=m))], 0.5)
        for m in KINDS
        if m in set(drawn["mark"])
    ]
    drawn = drawn.with_columns(tokens=pl.col("quantity").replace_strict(quantities))
    caption = (
        "AUC of Δ over tokens of one kind, beside that over all tokens of the same targets, with "
        f"{percent(study)} intervals. What is left on novel tokens outside the answer is what copying a peer or "
        "matching its answer cannot explain. A condition without a point has no such token; a target without one is "
        f"left out under every condition that has some.{few_groups(drawn)}"
    )
    chart = charts.panels_chart(drawn, panel="mark", panels=panels, colour="tokens")
    return Section(**section, figures=[Figure(key="copying", caption=caption, table=rows, chart=chart)])


def localisation(study: FinishedStudy) -> Section:
    """Whether the signal falls on the first error, by where the labels of steps come from."""
    section: dict[str, Any] = {"key": "localisation", "title": "Does the signal fall on the error?"}
    more = f"python -m analysis.localise measure {study.path} --planted 4"
    rows = study.located
    if rows is None:
        return Section(**section, missing=f"Errors were not located; made by: {resumed(study)}.")
    figures = []
    for (source,), part in rows.group_by("source", maintain_order=True):
        drawn = part.filter(pl.col("value").is_not_null())
        panels = [(m, words, _one_chance(drawn, m)) for m, words in LOCATED.items() if m in set(drawn["metric"])]
        if not panels:
            continue
        line = " The dashed line is chance." if any(chance is not None for *_, chance in panels) else ""
        caption = (
            f"Where Δ is lowest: {SOURCES.get(str(source), str(source))}, {_responses(part)} with a wrong and a right "
            f"step, {percent(study)} intervals over groups.{line}{few_groups(drawn)}"
        )
        chart = charts.panels_chart(drawn, panel="metric", panels=panels, colour="source")
        key = "localisation_" + re.sub("[^a-z0-9]+", "_", str(source).lower())
        figures.append(Figure(key=key, caption=caption, table=part, chart=chart))
    if figures:
        return Section(**section, figures=figures)
    missing = f"No response has a wrong and a right step that could be told; errors are planted by: {more}"
    return Section(**section, missing=missing)


def _responses(rows: pl.DataFrame) -> str:
    targets, groups = rows["n_targets"].max(), rows["n_groups"].max()
    return f"{targets} response{'s' * (targets != 1)} of {groups} group{'s' * (groups != 1)}"


def _one_chance(rows: pl.DataFrame, metric: str) -> float | None:
    """The chance level of a metric, if it is the same for every condition."""
    levels = rows.filter(pl.col("metric") == metric)["chance"].round(9).unique()
    return float(levels[0]) if len(levels) == 1 and levels[0] is not None else None


def confounds(study: FinishedStudy) -> Section:
    """Length, similarity to the peers and shared answers, and what is left of the AUC given them."""
    section: dict[str, Any] = {"key": "confounds", "title": "Length, similarity and shared answers"}
    rows = _here(study, "confounds")
    if rows is None:
        return Section(**section, missing=f"Confounds were not measured; made by: {resumed(study)}.")
    across = f"mean over groups with {percent(study)} intervals"
    figures = [
        *_strata(
            rows,
            "confounds_matched",
            MATCHED,
            f"AUC of all pairs and of those alike in length or similarity, {across}.",
        ),
        *_strata(rows, "confounds_answers", ANSWERS, f"{ANSWERS_MEAN} {across.capitalize()}."),
        *_similarity(rows, f"Similarity to the closest peer that is shown, of successes and of failures, {across}."),
        *_partial(
            rows,
            "Rank correlation of score and label, plain and given length and similarity (undefined where no peer is "
            f"shown), {across}.",
        ),
        *_alone(rows, "near_duplicate_rate", "Share of a group's rollouts whose normalised text another one has."),
    ]
    if not figures:
        return Section(**section, missing="No group defines any of the measures.")
    return Section(**section, figures=figures)


def difficulty(study: FinishedStudy) -> Section:
    """AUC by the success rate of the group."""
    section: dict[str, Any] = {"key": "difficulty", "title": "Difficulty"}
    rows = _here(study, "confounds")
    if rows is None:
        return Section(**section, missing=f"Groups were not parted by difficulty; made by: {resumed(study)}.")
    caption = (
        f"AUC by the share of successes among a group's judged rollouts, {percent(study)} intervals. Strata have few "
        "groups each and are not tested against one another."
    )
    figures = _strata(rows, "difficulty", tuple(RATES), caption)
    missing = "" if figures else "No group defines an AUC of pairs."
    return Section(**section, figures=figures, missing=missing)


def _here(study: FinishedStudy, name: str) -> pl.DataFrame | None:
    """A table's rows of the widest task and the first fair protocol (or of none, where a measure has none)."""
    table = study.table(name)
    if table is None:
        return None
    protocol = pl.col("protocol")
    rows = table.filter(pl.col("task") == (study.task or ""), protocol.is_null() | (protocol == study.protocol))
    if "score" in rows.columns:
        rows = rows.filter(pl.col("score").is_null() | pl.col("score").is_in(SCORES_SHOWN))
    return rows


def _strata(rows: pl.DataFrame, key: str, strata: Sequence[str], caption: str) -> list[Figure]:
    """AUC by condition, a panel for each stratum that has pairs."""
    table = rows.filter(pl.col("measure") == "auc", pl.col("stratum").is_in(list(strata)))
    drawn = table.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        return []
    there = set(drawn["stratum"])
    panels = [(s, [f"AUC, {RATES.get(s, s)}", sized(drawn.filter(stratum=s))], 0.5) for s in strata if s in there]
    absent = [RATES.get(s, s) for s in strata if s not in there]
    note = (f" Without any pair: {', '.join(absent)}." if absent else "") + few_groups(drawn)
    chart = charts.panels_chart(drawn, panel="stratum", panels=panels, colour="score")
    return [Figure(key=key, caption=caption + note, table=by_condition(table, "stratum", "score"), chart=chart)]


def _similarity(rows: pl.DataFrame, caption: str) -> list[Figure]:
    names = {"edit_similarity": "edit similarity", "ngram_overlap": "n-gram overlap"}
    table = rows.filter(pl.col("measure").is_in(list(names)))
    drawn = table.filter(pl.col("stratum").is_in(["success", "failure"]), pl.col("value").is_not_null())
    if drawn.is_empty():
        return []
    drawn = drawn.rename({"stratum": "targets"}).sort("targets", descending=True, maintain_order=True)
    caption += few_groups(drawn)
    panels = [(m, words, None) for m, words in names.items() if m in set(drawn["measure"])]
    chart = charts.panels_chart(drawn, panel="measure", panels=panels, colour="targets", columns=2)
    shown = by_condition(table, "measure", "stratum")
    return [Figure(key="confounds_similarity", caption=caption, table=shown, chart=chart)]


def _partial(rows: pl.DataFrame, caption: str) -> list[Figure]:
    table = rows.filter(pl.col("measure") == "partial_spearman")
    drawn = table.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        return []
    panels = [(s, ["rank correlation,", s], 0.0) for s in GIVEN if s in set(drawn["stratum"])]
    chart = charts.panels_chart(drawn, panel="stratum", panels=panels, colour="score", columns=2)
    shown = by_condition(table, "stratum", "score")
    return [Figure(key="confounds_partial", caption=caption, table=shown, chart=chart)]


def _alone(rows: pl.DataFrame, measure: str, caption: str) -> list[Figure]:
    """A measure that no condition has a part in: a table."""
    table = rows.filter(pl.col("measure") == measure).select("task", "value", "ci_low", "ci_high", "n_groups")
    return [] if table.is_empty() else [Figure(key=measure, caption=caption, table=table)]
