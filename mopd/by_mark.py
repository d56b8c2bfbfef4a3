"""How much of a condition's AUC rests on which tokens: Δ split by the marks of ``mopd.marks``.

For each kind of token a target's score is the mean of Δ (teacher minus student log-prob, nats a token) over its tokens
of that kind. A target without such a token has no score: it is left out under *all* conditions and counted, so that the
rows of a kind rest on the same pairs. Conditions that can have no such token at all (nothing is copied where no peer is
shown) have null rows and do not empty the others' support.

``auc`` is over tokens of the kind, ``auc_all_tokens`` over all tokens of the same targets, and ``auc_lost`` the second
minus the first. What is left on ``novel_non_answer`` is what copying and answer matching cannot explain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mopd.inference import DRAWS, metric_table
from mopd.lists import flat
from mopd.marks import MARKS
from mopd.metrics import GROUP_VALUES_EMPTY, group_values

__all__ = ["KINDS", "MARK_TABLE", "QUANTITIES", "mark_table", "marked_scores"]

Bools = NDArray[np.bool_]

ROWS = 20_000  # targets whose tokens are held at once
KEYS = ("task", "protocol", "condition", "group_id")
TARGET = ("task", "protocol", "group_id", "unit_id", "rollout_id")
QUANTITIES = ("share", "delta_success", "delta_failure", "auc", "auc_all_tokens", "auc_lost")

MARK_TABLE = {
    **dict.fromkeys(("task", "protocol", "condition", "mark", "quantity"), pl.String()),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    **dict.fromkeys(("n_groups", "n_pairs", "n_undefined", "n_dropped"), pl.Int64()),
}
"""Columns and types of ``marks.parquet``.

``share`` is the share of a target's tokens, over all its targets; the other quantities are on the support of the mark.
``n_pairs`` is null for what is no mean over pairs, ``n_undefined`` counts groups without a value, ``n_dropped`` targets
(once for each unit they are in) that some condition leaves without a token of the kind."""


def _select(marks: dict[str, NDArray]) -> dict[str, Bools]:
    """For each kind of token, the tokens that are of it."""
    copied, answer, position = marks["copied"], marks["in_answer"], marks["position"]
    return {
        "copied": copied,
        "novel": ~copied,
        "answer": answer,
        "non_answer": ~answer,
        "novel_non_answer": ~copied & ~answer,
        "high_entropy": marks["high_entropy"],
        "first_half": position < 2,
        "second_half": position >= 2,
    }


_NEEDS = {
    "answer": "in_answer",
    "non_answer": "in_answer",
    "novel_non_answer": "in_answer",
    "high_entropy": "high_entropy",
}
"""The mark that may be null for a target, by kind of token."""
_NO_TOKEN = {name: np.zeros(0, dtype=np.uint8 if name == "position" else np.bool_) for name in MARKS}
KINDS = tuple(_select(_NO_TOKEN))
"""Kinds of tokens, in the order in which tables show them."""


def marked_scores(tokens: pl.DataFrame) -> pl.DataFrame:
    """Mean Δ of each (context, target) over its tokens of each kind, and their share.

    Args:
        tokens: ``tokens.parquet`` with its marks.

    Returns:
        context_id, rollout_id, ``delta_all``, and for every kind ``delta_KIND`` (null where a target has no such token,
        or it is not known which they are) and ``share_KIND`` (null where it is not known).
    """
    floats = [f"{what}_{kind}" for kind in KINDS for what in ("delta", "share")]
    schema = dict.fromkeys(("context_id", "rollout_id"), pl.String()) | dict.fromkeys(
        ("delta_all", *floats), pl.Float64()
    )
    return pl.concat([pl.DataFrame(schema=schema), *(_scored(part) for part in tokens.iter_slices(ROWS))])


def _scored(tokens: pl.DataFrame) -> pl.DataFrame:
    size = tokens["token_ids"].list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(size)), size)
    delta = flat(tokens["teacher_logprob"], size, np.float64) - flat(tokens["student_logprob"], size, np.float64)
    kinds = _select({name: flat(tokens[name], size, _NO_TOKEN[name].dtype.type) for name in MARKS})
    columns = {"delta_all": _ratio(np.bincount(row, weights=delta, minlength=len(size)), size)}
    for kind, is_kind in kinds.items():
        known = np.ones(len(size), dtype=np.bool_)
        if kind in _NEEDS:
            known = tokens[_NEEDS[kind]].is_not_null().to_numpy()
        count = np.bincount(row, weights=is_kind, minlength=len(size))
        mean = _ratio(np.bincount(row[is_kind], weights=delta[is_kind], minlength=len(size)), count)
        columns[f"delta_{kind}"] = np.where(known, mean, np.nan)
        columns[f"share_{kind}"] = np.where(known, _ratio(count, size), np.nan)
    return tokens.select("context_id", "rollout_id").hstack(pl.DataFrame(columns).fill_nan(None))


def _ratio(above: NDArray, below: NDArray) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def mark_table(
    assignments: pl.DataFrame, scores: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95
) -> pl.DataFrame:
    """Every quantity of every kind of token, with intervals over groups: the rows of ``marks.parquet``.

    Args:
        assignments: ``assignments.parquet``; supported targets count.
        scores: what ``marked_scores`` returns.
    """
    scored = assignments.filter("supported").join(
        scores, on=["context_id", "rollout_id"], how="left", validate="m:1", maintain_order="left"
    )
    values = pl.concat([_kind_values(scored, kind) for kind in KINDS])
    dropped = _dropped(values)
    table = metric_table(values.drop("n_dropped"), draws=draws, seed=seed, confidence=confidence)
    named = table.rename({"score": "mark", "metric": "quantity"}).join(
        dropped, on=["task", "protocol", "condition", "mark"], how="left", validate="m:1"
    )
    order = {name: place for place, name in enumerate((*KINDS, *QUANTITIES))}
    ranked = named.with_columns(
        n_pairs=pl.when(pl.col("quantity").str.starts_with("auc")).then("n_pairs"),
        _mark=pl.col("mark").replace_strict(order),
        _quantity=pl.col("quantity").replace_strict(order),
    )
    return ranked.sort("task", "protocol", "_mark", "_quantity", "condition").select(list(MARK_TABLE))


def _dropped(values: pl.DataFrame) -> pl.DataFrame:
    """Targets left out for lack of a token of the kind, by task, protocol, condition and mark; ``all`` is their sum."""
    rows = values.filter(pl.col("metric") == "auc").rename({"score": "mark"})
    each = rows.group_by("task", "protocol", "condition", "mark", maintain_order=True).agg(pl.col("n_dropped").sum())
    whole = each.group_by("protocol", "condition", "mark", maintain_order=True).agg(pl.col("n_dropped").sum())
    pooled = whole.with_columns(task=pl.lit("all")).select(each.columns)
    return pl.concat([each, pooled]).unique(["task", "protocol", "condition", "mark"], keep="first")


def _kind_values(scored: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Every quantity of one kind by group, in the columns of ``mopd.metrics.group_values``."""
    score, share = f"delta_{kind}", f"share_{kind}"
    places = ["protocol", "condition"]
    possible = scored.group_by(places, maintain_order=True).agg(pl.col(score).is_not_null().any().alias("possible"))
    rows = scored.join(possible, on=places, how="left", validate="m:1", maintain_order="left")
    taking_part = rows.filter("possible").drop("possible")
    empty = rows.filter(~pl.col("possible")).drop("possible")
    kept = pl.col(score).is_not_null().all().over(*TARGET)
    same = taking_part.with_columns(
        pl.when(kept).then(score).alias(kind), pl.when(kept).then("delta_all").alias("all_tokens")
    )
    return pl.concat(
        [
            GROUP_VALUES_EMPTY,
            *_aucs(same, kind),
            *_nulls(empty, kind),
            *(_class_means(same, kind, success) for success in (True, False)),
            _group_means(rows, kind, pl.col(share), "share"),
        ]
    ).sort(*KEYS, "score", "metric")


def _aucs(rows: pl.DataFrame, kind: str) -> list[pl.DataFrame]:
    """AUC over tokens of the kind, over all tokens of the same pairs, and the difference, by group."""
    if rows.is_empty():
        return []
    values = group_values(rows, [kind, "all_tokens"], ["auc"])
    of_kind = values.filter(pl.col("score") == kind)
    of_all = values.filter(pl.col("score") == "all_tokens").with_columns(
        score=pl.lit(kind), metric=pl.lit("auc_all_tokens")
    )
    lost = of_kind.with_columns(value=of_all["value"] - of_kind["value"], metric=pl.lit("auc_lost"))
    return [of_kind, of_all, lost]


def _nulls(rows: pl.DataFrame, kind: str) -> list[pl.DataFrame]:
    """The same rows for conditions that have no token of the kind: no value, every target dropped."""
    counts = rows.group_by(KEYS, maintain_order=True).agg(n_undefined=pl.col("unit_id").n_unique(), n_dropped=pl.len())
    return [
        counts.select(
            *KEYS,
            score=pl.lit(kind),
            metric=pl.lit(name),
            value=pl.lit(None, dtype=pl.Float64),
            n_units=pl.lit(0, dtype=pl.Int64),
            n_undefined=pl.col("n_undefined").cast(pl.Int64),
            n_pairs=pl.lit(0, dtype=pl.Int64),
            n_dropped=pl.col("n_dropped").cast(pl.Int64),
        )
        for name in ("auc", "auc_all_tokens", "auc_lost", "delta_success", "delta_failure")
    ]


def _class_means(rows: pl.DataFrame, kind: str, success: bool) -> pl.DataFrame:
    """Mean Δ over a group's successes or failures; a group that lacks them is there, with null."""
    name = "delta_success" if success else "delta_failure"
    return _group_means(rows, kind, pl.when(pl.col("success") == success).then(pl.col(kind)), name)


def _group_means(rows: pl.DataFrame, kind: str, value: pl.Expr, name: str) -> pl.DataFrame:
    """A value averaged over a target's units, then over the group's targets."""
    targets = rows.group_by(*KEYS, "rollout_id", maintain_order=True).agg(value.mean().alias("value"))
    means = targets.group_by(KEYS, maintain_order=True).agg(pl.col("value").mean())
    return means.select(
        *KEYS,
        score=pl.lit(kind),
        metric=pl.lit(name),
        value="value",
        **{count: pl.lit(0, dtype=pl.Int64) for count in _COUNTS},
    )


_COUNTS: Sequence[str] = ("n_units", "n_undefined", "n_pairs", "n_dropped")
