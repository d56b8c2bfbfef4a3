"""What a study's tables say, in sentences, by stated rules; nothing is said that the rules do not give.

For a difference of AUC with a declared test (``contrasts.parquet``), ``LEVEL`` being 0.05:

1. **found** if the adjusted p-value is at most ``LEVEL``. It is said with its sign and interval, and also if it is
   shown to lie within the equivalence margin, so that a small difference is not sold as a large one.
2. **equivalent** if it was not found and the equivalence test's p-value, adjusted by Holm over the family, is at most
   ``LEVEL``: shown to lie within the margin.
3. **open** otherwise: neither a difference nor equivalence was shown.
4. **undefined** if there is no p-value.

If even the smallest p-value that so many groups can give would not pass, it says that nothing could have been found.
Only the primary family makes claims; the rest are named as places to look. Confounded protocols make none.

What else a report shows (copying, where Δ falls, matched pairs) has no declared test. 5. It is said with its interval,
and whether that lies **above**, **below** or **across** a value; an interval of one value (every group agrees) and an
interval that is not defined are said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from analysis.reporting.finished import FinishedStudy
from analysis.tables import SCORE_NOTE
from mopd.contrasts import PRIMARY
from mopd.inference import holm
from mopd.power import plan

__all__ = ["LEVEL", "OTHER", "SCORES_SHOWN", "Finding", "findings", "primary_findings", "verdict"]

LEVEL = 0.05
SCORES_SHOWN = ("teacher_mean", "delta_mean")
OTHER = "other explanations"
FLIPS_EXACT = 2.0  # of 2^G sign patterns, the two most extreme ones are always as extreme as themselves

Verdict = Literal["found", "equivalent", "open", "undefined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A sentence with what it is about; ``kind`` is a verdict, or ``note`` for a remark."""

    kind: Verdict | Literal["note"]
    about: str
    text: str


def verdict(p_adjusted: float | None, p_equivalence_adjusted: float | None) -> Verdict:
    """Rules 1 to 4 for one difference."""
    if p_adjusted is None:
        return "undefined"
    if p_adjusted <= LEVEL:
        return "found"
    if p_equivalence_adjusted is not None and p_equivalence_adjusted <= LEVEL:
        return "equivalent"
    return "open"


def findings(study: FinishedStudy) -> list[Finding]:
    """All sentences of a study, those on the primary family first."""
    if study.task is None or not study.fair_protocols:
        return [Finding(kind="note", about="study", text=_nothing(study))]
    protocol = study.protocol
    found: list[Finding] = []
    for score in SCORES_SHOWN:
        rows = study.tables["contrasts"].filter(
            pl.col("task") == study.task,
            pl.col("protocol") == protocol,
            pl.col("score") == score,
            pl.col("metric") == "auc",
        )
        found += primary_findings(rows, score, study.confidence)
        found += _rest(rows, score)
        found += _chance(study, protocol, score)
    return found + _other_explanations(study)


def _nothing(study: FinishedStudy) -> str:
    if study.task is None:
        return "No group could be compared, so the study says nothing about the conditions."
    return "Only confounded protocols were run, so no difference is tested: run --protocol leave_pair_out as well."


def primary_findings(rows: pl.DataFrame, score: str, confidence: float) -> list[Finding]:
    """The sentences on the declared family of one score.

    Args:
        rows: ``contrasts.parquet`` of one task, protocol and score, metric auc.
        score: its name.
        confidence: of the intervals.
    """
    declared = {name: place for place, name in enumerate(PRIMARY[1])}
    place = pl.col("reference").replace_strict(declared, default=len(declared), return_dtype=pl.Int64)
    primary = rows.filter(pl.col("family") == "primary").sort(place, maintain_order=True)
    if primary.is_empty():
        rivals = ", ".join(PRIMARY[1])
        text = f"None of the declared differences ({PRIMARY[0]} against {rivals}) was run, so nothing is claimed."
        return [Finding(kind="note", about=score, text=text)]
    equivalence = _holm(primary["p_equivalence"])
    judged: list[tuple[dict[str, Any], Verdict, float | None]] = [
        (row, verdict(row["p_adjusted"], p), p)
        for row, p in zip(primary.iter_rows(named=True), equivalence, strict=True)
    ]
    detectable = {r["reference"]: r["detectable"] for r in plan(primary).iter_rows(named=True)}
    head = _headline(score, [v for _, v, _ in judged], primary)
    return [
        head,
        *(
            Finding(kind=v, about=score, text=_sentence(row, v, p, detectable.get(row["reference"]), confidence))
            for row, v, p in judged
        ),
    ]


def _holm(p_values: pl.Series) -> list[float | None]:
    """Adjusted p-values, null where there is none; those without one are no members of the family."""
    values = p_values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    adjusted = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    if known.any():
        adjusted[known] = holm(values[known])
    return [None if np.isnan(p) else float(p) for p in adjusted]


def _headline(score: str, verdicts: Sequence[Verdict], primary: pl.DataFrame) -> Finding:
    n, found = len(verdicts), verdicts.count("found")
    groups = primary["n_groups"].max()
    family = "difference" if n == 1 else "differences"
    text = (
        f"By {score} ({SCORE_NOTE[score]}), {found or 'none'} of the {n} declared {family} of AUC "
        f"{'is' if found in (0, 1) else 'are'} significant at {LEVEL:g} (Holm); "
        f"{verdicts.count('equivalent') or 'none'} of the others {'is' if verdicts.count('equivalent') < 2 else 'are'} "
        f"shown to be equivalent within the margin."
    )
    if isinstance(groups, int) and groups and min(1.0, n * FLIPS_EXACT / 2.0**groups) > LEVEL:
        text += (
            f" With {groups} group{'s' if groups > 1 else ''} the test cannot reach {LEVEL:g} for {n} {family}, "
            "whatever the truth: this study is too small to find anything."
        )
    return Finding(kind="note", about=score, text=text)


def _sentence(
    row: Mapping[str, Any], judged: Verdict, p_equivalence: float | None, detectable: float | None, confidence: float
) -> str:
    pair, margin = f"{row['condition']} against {row['reference']}", row["equivalence_margin"]
    if judged == "undefined":
        return f"{pair}: undefined, since no group allows the comparison."
    numbers = f"{_signed(row['difference'])} {_between(row, confidence)}, adjusted p {_p(row['p_adjusted'])}"
    if judged == "found":
        better = "higher" if row["difference"] > 0 else "lower"
        small = p_equivalence is not None and p_equivalence <= LEVEL
        but = f" The difference is shown to lie within ±{margin:g}, so it is small." if small else ""
        return f"{pair}: the AUC is {better} ({numbers}).{but}"
    if judged == "equivalent":
        return f"{pair}: equivalent within ±{margin:g} ({numbers}; equivalence test, adjusted p {_p(p_equivalence)})."
    if row["sd"] == 0:
        return f"{pair}: the same difference in every group ({numbers}), so there is no spread to judge by."
    found = "" if detectable is None else f" A true difference of {detectable:.3f} would be found with 80% power."
    return f"{pair}: neither a difference nor equivalence was shown ({numbers}).{found}"


def _rest(rows: pl.DataFrame, score: str) -> list[Finding]:
    """Where to look: what passes in the family that was not declared."""
    rest = rows.filter(pl.col("family") == "rest", pl.col("p_adjusted").is_not_null())
    if rest.is_empty():
        return []
    passed = [r for r in rest.iter_rows(named=True) if r["p_adjusted"] <= LEVEL]
    named = ", ".join(f"{r['condition']} - {r['reference']} ({_signed(r['difference'])})" for r in passed)
    text = (
        f"Of {rest.height} further differences by {score}, not declared beforehand and adjusted by Benjamini and "
        f"Hochberg, {len(passed) or 'none'} {'passes' if len(passed) < 2 else 'pass'} {LEVEL:g}"
        + (f": {named}. They are places to look, not results." if passed else ".")
    )
    return [Finding(kind="note", about=score, text=text)]


def _chance(study: FinishedStudy, protocol: str, score: str) -> list[Finding]:
    """Which conditions rank better or worse than a coin, as far as single intervals say."""
    rows = study.tables["metrics"].filter(
        pl.col("task") == study.task,
        pl.col("protocol") == protocol,
        pl.col("score") == score,
        pl.col("metric") == "auc",
        pl.col("ci_low").is_not_null(),
    )
    if rows.is_empty():
        return []
    above = rows.filter(pl.col("ci_low") > 0.5)["condition"].to_list()
    below = rows.filter(pl.col("ci_high") < 0.5)["condition"].to_list()
    text = (
        f"By {score}, the {100 * study.confidence:g}% interval of the AUC lies above 0.5 under {_count(above, rows)} "
        f"conditions and below it under {_count(below, rows)}. These are single intervals, not adjusted for their "
        "number."
    )
    return [Finding(kind="note", about=score, text=text)]


def _other_explanations(study: FinishedStudy) -> list[Finding]:
    """What is left of the lead condition's signal beside copying, length and similarity; and where it falls."""
    sentences = [*_novel(study), *_matched(study), *_located(study)]
    return [Finding(kind="note", about=OTHER, text=text) for text in sentences]


def _of_lead(study: FinishedStudy, name: str, **wanted: str) -> list[dict[str, Any]]:
    """Rows of a table about the lead condition of the primary family with a value."""
    table = study.table(name)
    if table is None:
        return []
    place = {"task": study.task, "protocol": study.protocol, "condition": PRIMARY[0], **wanted}
    return list(table.filter(pl.col("value").is_not_null(), **place).iter_rows(named=True))


def _novel(study: FinishedStudy) -> list[str]:
    of = {row["quantity"]: row for row in _of_lead(study, "marks", mark="novel_non_answer")}
    if not {"auc", "auc_lost"} <= set(of):
        return []
    return [
        f"Under {PRIMARY[0]}, the AUC of Δ over tokens that are neither copied from a peer nor part of the answer is "
        f"{_placed(of['auc'], 0.5)}. Against all tokens of the same targets it loses {_placed(of['auc_lost'], 0.0)}."
    ]


def _matched(study: FinishedStudy) -> list[str]:
    stratum = "length and similarity matched"
    rows = _of_lead(study, "confounds", measure="auc", stratum=stratum)
    return [
        f"Within pairs alike in length and similarity ({row['n_pairs']} pairs of {row['n_groups']} groups), the AUC of "
        f"{row['score']} under {PRIMARY[0]} is {_placed(row, 0.5)}."
        for row in rows
        if row["score"] in SCORES_SHOWN
    ]


def _located(study: FinishedStudy) -> list[str]:
    rows = study.located
    if rows is None:
        return []
    lead = rows.filter(pl.col("value").is_not_null(), condition=PRIMARY[0], metric="auroc")
    return [
        f"Under {PRIMARY[0]}, the AUROC of −Δ for wrong steps (source {row['source']}, {row['n_targets']} "
        f"response{'s' * (row['n_targets'] != 1)} of {row['n_groups']} group{'s' * (row['n_groups'] != 1)}) is "
        f"{_placed(row, 0.5)}."
        for row in lead.iter_rows(named=True)
    ]


def _placed(row: Mapping[str, Any], value: float) -> str:
    """A value with its interval, and where that lies (rule 5)."""
    low, high = row["ci_low"], row["ci_high"]
    if low is None or high is None:
        return f"{row['value']:.3f} without an interval (too few groups)"
    if low == high:
        return f"{row['value']:.3f} in every group, so there is no spread to judge by"
    where = "above" if low > value else "below" if high < value else "across"
    return f"{row['value']:.3f} [{low:.3f}, {high:.3f}], which lies {where} {value:g}"


def _count(names: Sequence[str], rows: pl.DataFrame) -> str:
    return f"{len(names) or 'none'} of {rows.height}"


def _between(row: Mapping[str, Any], confidence: float) -> str:
    if row["ci_low"] is None or row["ci_high"] is None:
        return "[no interval]"
    return f"[{_signed(row['ci_low'])}, {_signed(row['ci_high'])}] ({100 * confidence:g}% interval)"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return "undefined"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
