"""Does Δ fall where the error is? Steps with a label, their Δ, and how well −Δ finds the wrong ones.

A step is a span of characters of a response with a label ``wrong``. Labels come from several *sources*: the checker of
equations (``mopd.equations``), planted errors (``mopd.planted``), annotated data (``mopd.process_data``), and the lines
of a program that only failing tests execute (``mopd.suspects``). A step's score is the mean Δ over its tokens; a token
on the seam of two steps belongs to both.

Per target, over its labelled steps (null labels take no part), higher is better:

* ``auroc``: chance that a wrong step has a lower Δ than a right one, ties ½; chance level 0.5.
* ``top1``: whether the first wrong step has the lowest Δ of all; among ties by its share. Chance level 1/n.
* ``reciprocal_rank``: 1 over the place of the first wrong step in the order of Δ from the lowest; the mean over orders
  of ties. Chance level (1 + 1/2 + ... + 1/n) / n.

They are defined for targets with a wrong and a right step; the others are counted. A target's values are averaged over
its units, then over a group's targets, then over groups, with the intervals of ``mopd.inference``.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from mopd.equations import equations_in
from mopd.inference import DRAWS, metric_table
from mopd.lists import flat, offsets
from mopd.marks import span_mask
from mopd.metrics import ALL_TASKS, METRICS, Units
from mopd.tokens import Codec

__all__ = ["LOCALISATION", "STEPS", "checked_steps", "localisation_table", "step_scores", "target_values"]

STEPS = {
    "rollout_id": pl.String(),
    "source": pl.String(),
    "step": pl.Int64(),  # in the order of the response
    "start": pl.Int64(),  # characters of the response
    "end": pl.Int64(),
    "wrong": pl.Boolean(),  # null: not known
}
"""Columns and types of a table of steps."""

LOCALISATION = {
    **dict.fromkeys(("task", "protocol", "condition", "source", "metric"), pl.String()),
    **dict.fromkeys(("value", "ci_low", "ci_high", "chance"), pl.Float64()),
    **dict.fromkeys(("n_groups", "n_targets", "n_undefined"), pl.Int64()),
}
"""Columns and types of ``localisation.parquet``; ``n_targets`` are those with a wrong and a right step, ``n_undefined``
those of the study without; ``chance`` is the mean chance level over the same targets."""

FOUND = ("auroc", "top1", "reciprocal_rank")
ROWS = 20_000  # targets whose tokens are held at once
KEYS = ("task", "protocol", "condition", "group_id", "source")


def checked_steps(rollouts: pl.DataFrame) -> pl.DataFrame:
    """The equations of every response as steps of the source ``checker``: ``wrong`` if they do not hold."""
    rows = [
        (rollout_id, "checker", step, e.start, e.end, None if e.holds is None else not e.holds)
        for rollout_id, response in rollouts.select("rollout_id", "response").iter_rows()
        for step, e in enumerate(equations_in(response or ""))
    ]
    return pl.DataFrame(rows, schema=STEPS, orient="row")


def step_scores(tokens: pl.DataFrame, steps: pl.DataFrame, codec: Codec) -> pl.DataFrame:
    """Mean Δ of every labelled step under every context.

    Args:
        tokens: ``tokens.parquet``.
        steps: in the columns ``STEPS``; those of rollouts that were not scored, without a label or without a token are
            left out.
        codec: the teacher's tokenizer.

    Returns:
        context_id, rollout_id, source, step, wrong, delta (nats a token).
    """
    placed = _placed(tokens, steps.filter(pl.col("wrong").is_not_null()), codec)
    names = ("context_id", "rollout_id", "source", "step", "wrong")
    schema = {"context_id": pl.String(), **{n: STEPS[n] for n in names[1:]}, "delta": pl.Float64()}
    parts = [pl.DataFrame(schema=schema)]
    for part in tokens.join(placed, on="rollout_id", how="semi", maintain_order="left").iter_slices(ROWS):
        size = part["token_ids"].list.len().to_numpy().astype(np.int64)
        teacher, student = (flat(part[f"{who}_logprob"], size, np.float64) for who in ("teacher", "student"))
        rows = (
            part.select("context_id", "rollout_id", offset=pl.Series(offsets(size)))
            .join(placed, on="rollout_id", how="inner", maintain_order="left_right")
            .with_columns(pl.col("first") + pl.col("offset"), pl.col("last") + pl.col("offset"))
        )
        edges = rows.select("first", "last").to_numpy().ravel()
        # every other segment is a step; the appended 0 lets the last one end with the tokens
        sums = np.add.reduceat(np.append(teacher - student, 0.0), edges)[::2]
        parts.append(rows.select(*names, delta=pl.Series(sums) / (pl.col("last") - pl.col("first"))))
    return pl.concat(parts)


def _placed(tokens: pl.DataFrame, steps: pl.DataFrame, codec: Codec) -> pl.DataFrame:
    """The steps of scored rollouts with their first token and the one after their last."""
    scored = tokens.select("rollout_id", "token_ids").unique("rollout_id", keep="first", maintain_order=True)
    of_rollout = {str(key[0]): part for key, part in steps.partition_by("rollout_id", as_dict=True).items()}
    rows = []
    for rollout_id, ids in scored.iter_rows():
        if rollout_id not in of_rollout:
            continue
        part = of_rollout[rollout_id]
        masks = span_mask(ids, part.select("start", "end").rows(), codec)
        for (source, step, wrong), mask in zip(part.select("source", "step", "wrong").iter_rows(), masks, strict=True):
            places = np.flatnonzero(mask)
            if len(places):
                rows.append((rollout_id, source, step, wrong, int(places[0]), int(places[-1]) + 1))
    schema = {n: STEPS[n] for n in ("rollout_id", "source", "step", "wrong")} | {
        "first": pl.Int64(),
        "last": pl.Int64(),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def target_values(scores: pl.DataFrame) -> pl.DataFrame:
    """Every metric of every (context, target, source) that has a wrong and a right step, with its chance level.

    Args:
        scores: what ``step_scores`` returns.

    Returns:
        context_id, rollout_id, source, auroc, top1, reciprocal_rank, and ``chance_`` each of them.
    """
    keys = ["context_id", "rollout_id", "source"]
    first = pl.col("delta").filter("wrong").first()
    grouped = (
        scores.sort(*keys, "step")
        .group_by(keys, maintain_order=True)
        .agg(
            n=pl.len(),
            n_wrong=pl.col("wrong").sum(),
            below=(pl.col("delta") < first).sum(),
            tied=(pl.col("delta") == first).sum(),
        )
        .filter(pl.col("n_wrong").is_between(1, pl.col("n") - 1))
    )
    kept = scores.join(grouped.select(keys).with_row_index("unit"), on=keys, how="inner", validate="m:1")
    units = Units.of(-kept["delta"].to_numpy(), kept["wrong"].to_numpy(), kept["unit"].to_numpy(), grouped.height)
    n, below, tied = (grouped[name].to_numpy().astype(np.int64) for name in ("n", "below", "tied"))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n.max(initial=0) + 1))])
    return grouped.select(keys).with_columns(
        auroc=pl.Series(METRICS["auc"].function(units)),
        top1=pl.Series(np.where(below == 0, 1 / np.maximum(tied, 1), 0.0)),
        reciprocal_rank=pl.Series((harmonic[below + tied] - harmonic[below]) / np.maximum(tied, 1)),
        chance_auroc=pl.lit(0.5),
        chance_top1=pl.Series(1 / n),
        chance_reciprocal_rank=pl.Series(harmonic[n] / n),
    )


def localisation_table(
    assignments: pl.DataFrame,
    scores: pl.DataFrame,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> pl.DataFrame:
    """How well −Δ finds errors under every condition: the rows of ``localisation.parquet``.

    Args:
        assignments: ``assignments.parquet``; supported targets count, the same under every condition.
        scores: what ``step_scores`` returns.
    """
    supported = assignments.filter("supported")
    sources = scores.select(pl.col("source").unique().sort())
    targets = supported.join(sources, how="cross").join(
        target_values(scores), on=["context_id", "rollout_id", "source"], how="left", validate="m:1"
    )
    columns = [*FOUND, *(f"chance_{name}" for name in FOUND)]
    of_target = targets.group_by(*KEYS, "rollout_id", maintain_order=True).agg(pl.col(columns).mean())
    of_group = of_target.group_by(KEYS, maintain_order=True).agg(
        pl.col(columns).mean(), n_pairs=pl.col("auroc").count().cast(pl.Int64), n_all=pl.len().cast(pl.Int64)
    )
    values = of_group.unpivot(columns, index=[*KEYS, "n_pairs"], variable_name="metric").rename({"source": "score"})
    if values.is_empty():
        return pl.DataFrame(schema=LOCALISATION)
    table = metric_table(values.sort(pl.all()), draws=draws, seed=seed, confidence=confidence).rename(
        {"score": "source", "n_pairs": "n_targets"}
    )
    key = ["task", "protocol", "condition", "source", "metric"]
    chance = table.filter(pl.col("metric").str.starts_with("chance_")).select(
        *key[:4], pl.col("metric").str.strip_prefix("chance_"), chance="value"
    )
    return (
        table.filter(pl.col("metric").is_in(FOUND))
        .drop("n_undefined")
        .join(chance, on=key, how="left", validate="1:1")
        .join(_all_targets(of_group), on=key[:4], how="left", validate="m:1")
        .with_columns(n_undefined=pl.col("n_all") - pl.col("n_targets"))
        .select(list(LOCALISATION))
        .sort("task", "protocol", "source", "metric", "condition")
    )


def _all_targets(of_group: pl.DataFrame) -> pl.DataFrame:
    """Targets of the study by task, protocol, condition and source, of all tasks together as well."""
    place = ["protocol", "condition", "source"]
    each = of_group.group_by("task", *place, maintain_order=True).agg(pl.col("n_all").sum())
    pooled = (
        of_group.group_by(place, maintain_order=True).agg(pl.col("n_all").sum()).with_columns(task=pl.lit(ALL_TASKS))
    )
    return pl.concat([each, pooled.select(each.columns)]).unique(["task", *place], keep="first")
