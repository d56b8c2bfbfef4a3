"""The published analysis, kept to show what is wrong with it.

``--published`` scores every target under contexts built as the released MOPD scripts build them: each target's peers
are the first others in order of id, empty slots stay empty, duplicates of the target are allowed. Four *sample sets*
then decide which rows and prompts count:

* ``all_samples``: all rows of all prompts.
* ``effective_only``: rows whose slots could be filled; prompts that keep a row.
* ``both_present_all``: all rows of prompts with a success and a failure.
* ``both_present_effective_only``: filled rows of those prompts; decided before rows drop out.

A prompt whose AUC is undefined counts as 0.0. A perfect teacher whose scores ignore the context therefore reports
.61 to .74 here, and 1.000 under every protocol of ``mopd.peers``.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from analysis.tables import text_table
from mopd.conditions import Condition, condition
from mopd.metrics import measure
from mopd.peers import Assignment, Peer, usable
from mopd.rollouts import Group
from mopd.study import Study

__all__ = ["SAMPLE_SETS", "published_protocol", "published_table", "published_text"]

SAMPLE_SETS = ("all_samples", "effective_only", "both_present_all", "both_present_effective_only")


def published_protocol(group: Group, cond: Condition, seed: int) -> Iterator[Assignment]:
    """Self-exclusion by id alone, the first others in order of id, whatever slots can be filled. No seed enters.

    Raises:
        ValueError: the condition is not one of slots alone, and so not of the released scripts.
    """
    if not cond.of_family:
        raise ValueError(f"the published procedure knows no condition {cond.name}; leave out --published, or it")
    line = sorted(usable(group), key=lambda r: r.rollout_id)
    for target in line:
        others = [r for r in line if r.rollout_id != target.rollout_id]
        successes = [r.rollout_id for r in others if r.success]
        failures = [r.rollout_id for r in others if not r.success]
        shown = successes[cond.success_offset : cond.success_offset + cond.success_slots]
        peers = [Peer(rollout_id=r, role="success") for r in shown]
        peers += [Peer(rollout_id=r, role="failure") for r in failures[: cond.failure_slots]]
        yield Assignment(unit_id="group", targets=(target.rollout_id,), peers=tuple(peers))


def published_table(study: Study, score: str = "teacher_mean") -> pl.DataFrame:
    """Sample set, condition, success_auc (undefined prompts as 0.0, as published) and count_prompts."""
    rows = _rows(study, score)
    found = []
    for name in rows["condition"].unique(maintain_order=True):
        one = rows.filter(pl.col("condition") == name)
        for sample_set in SAMPLE_SETS:
            kept = one.filter("mixed") if sample_set.startswith("both_present") else one
            kept = kept.filter("effective") if sample_set.endswith("effective_only") else kept
            values = [_auc_or_zero(part) for part in kept.partition_by("group_id")]
            found.append((sample_set, name, sum(values) / len(values) if values else None, len(values)))
    schema = {"sample_set": pl.String, "condition": pl.String, "success_auc": pl.Float64, "count_prompts": pl.Int64}
    return pl.DataFrame(found, schema=schema, orient="row")


def _rows(study: Study, score: str) -> pl.DataFrame:
    """A row per (condition, target), with whether its slots were filled and whether its prompt is mixed."""
    rows = study.assignments.filter(pl.col("protocol") == "published").join(
        study.scores.select("context_id", "rollout_id", score),
        on=["context_id", "rollout_id"],
        how="left",
        validate="m:1",
        maintain_order="left",
    )
    rows = rows.filter(pl.col("reason").is_null() | pl.col("reason").is_in(["one_class", "undefined_elsewhere"]))
    own = pl.col("success").cast(pl.Int64)
    per_group = ("condition", "group_id")
    needs = {name: condition(name) for name in rows["condition"].unique()}
    successes = pl.col("condition").replace_strict({n: c.needs_successes for n, c in needs.items()})
    failures = pl.col("condition").replace_strict({n: c.failure_slots for n, c in needs.items()})
    return rows.with_columns(
        other_successes=own.sum().over(per_group) - own,
        other_failures=(1 - own).sum().over(per_group) - (1 - own),
        mixed=(own.max().over(per_group) == 1) & (own.min().over(per_group) == 0),
    ).with_columns(
        effective=(pl.col("other_successes") >= successes) & (pl.col("other_failures") >= failures),
        score=pl.col(score),
    )


def _auc_or_zero(part: pl.DataFrame) -> float:
    if part["success"].n_unique() < 2:
        return 0.0  # as published: an undefined prompt enters the mean as the worst value
    return measure("auc", part["score"].to_numpy(), part["success"].to_numpy())


def published_text(study: Study) -> str:
    """The four sample sets side by side, with a warning."""
    table = published_table(study)
    names = table["condition"].unique(maintain_order=True).to_list()
    cells = {(s, c): (v, n) for s, c, v, n in table.iter_rows()}
    body = []
    for name in names:
        entries = [cells[sample_set, name] for sample_set in SAMPLE_SETS]
        body.append([name, *("undefined" if v is None else f"{v:.3f} ({n})" for v, n in entries)])
    return "\n".join(
        [
            "published procedure: success_auc (prompts), an undefined prompt counted as 0.0. NOT a valid comparison:",
            "each column and row has its own prompts; see docs/statistics.md",
            text_table(["condition", *SAMPLE_SETS], body),
        ]
    )
