"""What a reader of a study looks up, derived from its tables: a board of groups, and a group's matrix and pairs.

``groups.parquet`` is written with the study (``browsing_tables``); the rest is small enough to be made when a group is
opened. Null means undefined: a group in which nothing was judged has no success rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mopd.peers import normalise
from mopd.store import SCHEMAS
from mopd.texts import text_frame
from mopd.tokens import Codec

__all__ = ["FLAGS", "browsing_tables", "group_board", "pair_outcomes", "score_matrix", "who_saw_whom"]

FLAGS = {
    "lone success": "one success among several judged rollouts",
    "lone failure": "one failure among several judged rollouts",
    "all failed": "no judged rollout succeeded",
    "all succeeded": "every judged rollout succeeded",
    "unjudged": "a rollout could not be judged",
    "truncated": "a rollout was cut by the length limit",
    "duplicates": "two rollouts have the same text but for case and white space",
    "empty": "a rollout has no text",
}
"""Flags of groups, and what each means."""


def browsing_tables(tables: Mapping[str, pl.DataFrame], codec: Codec) -> dict[str, pl.DataFrame]:
    """``groups`` (``group_board``) and ``texts`` (``mopd.texts.text_frame``) of a study's tables."""
    return {
        "groups": group_board(tables["rollouts"], tables["scores"]),
        "texts": text_frame(tables["tokens"], tables["contexts"], codec),
    }


def question_text(prompts: pl.Series) -> pl.Series:
    """What was asked: the last user message of chat prompts, plain ones as they are."""
    if prompts.dtype == pl.String:
        return prompts
    asked = [
        next((m["content"] for m in reversed(messages or []) if m["role"] == "user"), None)
        for messages in prompts.to_list()
    ]
    return pl.Series(prompts.name, asked, dtype=pl.String)


def group_board(rollouts: pl.DataFrame, scores: pl.DataFrame | None) -> pl.DataFrame:
    """A row per group, in file order.

    Args:
        rollouts: ``rollouts.parquet``.
        scores: ``scores.parquet``; None where nothing was scored.

    Returns:
        ``group_id, task, policy, step, question, n_rollouts, n_success, n_failure, n_unjudged, success_rate`` (null if
        nothing was judged), ``n_truncated, n_duplicates`` (rollouts whose text came before in the group), ``n_empty,
        flags`` (of ``FLAGS``), and the strongest push of any context: ``largest_delta`` (the mean Δ of a rollout under
        a condition, nats per token, that is farthest from 0; averaged over its contexts), ``largest_rollout_id,
        largest_condition, largest_protocol`` (null where nothing was scored).
    """
    label = pl.col("success")
    texts = rollouts.select(
        "group_id", text=pl.col("response").map_elements(normalise, return_dtype=pl.String, skip_nulls=True)
    )
    duplicates = texts.filter(pl.col("text") != "").group_by("group_id").agg(distinct=pl.col("text").n_unique())
    board = (
        rollouts.group_by("group_id", maintain_order=True)
        .agg(
            pl.col("task", "policy", "step", "prompt").first(),
            n_rollouts=pl.len().cast(pl.Int64),
            n_success=label.fill_null(False).sum().cast(pl.Int64),
            n_failure=(~label).fill_null(False).sum().cast(pl.Int64),
            n_unjudged=label.is_null().sum().cast(pl.Int64),
            success_rate=label.mean(),
            n_truncated=(~pl.col("finished")).fill_null(False).sum().cast(pl.Int64),
            n_empty=(pl.col("response").fill_null("").str.strip_chars() == "").sum().cast(pl.Int64),
        )
        .join(duplicates, on="group_id", how="left", validate="1:1", maintain_order="left")
        .with_columns(
            n_duplicates=pl.col("n_rollouts") - pl.col("n_empty") - pl.col("distinct").cast(pl.Int64).fill_null(0)
        )
        .join(_largest_push(scores), on="group_id", how="left", validate="1:1", maintain_order="left")
    )
    return board.with_columns(question=question_text(board["prompt"]), flags=_flags()).select(
        *("group_id", "task", "policy", "step", "question", "n_rollouts", "n_success", "n_failure", "n_unjudged"),
        *("success_rate", "n_truncated", "n_duplicates", "n_empty", "flags"),
        *("largest_delta", "largest_rollout_id", "largest_condition", "largest_protocol"),
    )


def _flags() -> pl.Expr:
    good, bad = pl.col("n_success"), pl.col("n_failure")
    holds = {
        "lone success": (good == 1) & (bad > 0),
        "lone failure": (bad == 1) & (good > 0),
        "all failed": (good == 0) & (bad > 0),
        "all succeeded": (bad == 0) & (good > 0),
        "unjudged": pl.col("n_unjudged") > 0,
        "truncated": pl.col("n_truncated") > 0,
        "duplicates": pl.col("n_duplicates") > 0,
        "empty": pl.col("n_empty") > 0,
    }
    words = [pl.when(holds[name]).then(pl.lit(name)) for name in FLAGS]
    return pl.concat_list(words).list.drop_nulls()


def _largest_push(scores: pl.DataFrame | None) -> pl.DataFrame:
    """For each group, the (rollout, condition) whose mean Δ is farthest from 0."""
    rows = (pl.DataFrame(schema=SCHEMAS["scores"]) if scores is None else scores).filter(
        pl.col("delta_mean").is_not_null()
    )
    keys = ["group_id", "rollout_id", "condition", "protocol"]
    means = rows.group_by(keys, maintain_order=True).agg(pl.col("delta_mean").mean())
    place = pl.col("delta_mean").abs().arg_max()
    return means.group_by("group_id", maintain_order=True).agg(
        largest_delta=pl.col("delta_mean").get(place),
        largest_rollout_id=pl.col("rollout_id").get(place),
        largest_condition=pl.col("condition").get(place),
        largest_protocol=pl.col("protocol").get(place),
    )


def score_matrix(scores: pl.DataFrame, score: str) -> pl.DataFrame:
    """Each rollout's score under each condition, averaged over the contexts that it was scored under.

    Args:
        scores: rows of ``scores.parquet``.
        score: a score column, nats.

    Returns:
        A row per (protocol, rollout_id, condition): ``success``, ``value``, ``n_contexts``, and ``low``, ``high``, the
        extremes over contexts.
    """
    return (
        scores.group_by("protocol", "rollout_id", "condition", maintain_order=True)
        .agg(
            pl.col("success").first(),
            value=pl.col(score).mean(),
            low=pl.col(score).min(),
            high=pl.col(score).max(),
            n_contexts=pl.len().cast(pl.Int64),
        )
        .sort("protocol", "rollout_id", "condition")
    )


def pair_outcomes(assignments: pl.DataFrame, scores: pl.DataFrame, score: str) -> pl.DataFrame:
    """Every compared pair of a success and a failure under every condition, the worst first.

    Args:
        assignments: rows of ``assignments.parquet``; those that are not supported are left out.
        scores: rows of ``scores.parquet``.
        score: a score column, nats.

    Returns:
        ``protocol, condition, group_id, unit_id, success_id, failure_id, success_score, failure_score, margin``
        (success minus failure) and ``outcome`` (right, tied, wrong), by margin.
    """
    scored = assignments.filter(pl.col("supported") & pl.col("success").is_not_null()).join(
        scores.select("context_id", "rollout_id", value=pl.col(score)),
        on=["context_id", "rollout_id"],
        how="inner",
        validate="m:1",
    )
    unit = ["protocol", "condition", "group_id", "unit_id"]
    side = [*unit, "rollout_id", "value"]
    good = scored.filter("success").select(side).rename({"rollout_id": "success_id", "value": "success_score"})
    bad = scored.filter(~pl.col("success")).select(side).rename({"rollout_id": "failure_id", "value": "failure_score"})
    margin = pl.col("success_score") - pl.col("failure_score")
    outcome = pl.when(margin > 0).then(pl.lit("right")).when(margin < 0).then(pl.lit("wrong")).otherwise(pl.lit("tied"))
    pairs = good.join(bad, on=unit, how="inner", validate="m:m").with_columns(margin=margin, outcome=outcome)
    return pairs.select(*unit, "success_id", "failure_id", "success_score", "failure_score", "margin", "outcome").sort(
        "margin", "condition", "unit_id"
    )


def who_saw_whom(assignments: pl.DataFrame, contexts: pl.DataFrame) -> pl.DataFrame:
    """Which peers stood in the contexts that each target was scored under.

    Args:
        assignments: rows of ``assignments.parquet``; those that are not supported are left out.
        contexts: rows of ``contexts.parquet`` that they name.

    Returns:
        A row per (protocol, condition, target, peer, role), with ``n_units``: in how many units the target was scored
        with that peer in sight, and ``n_target_units``: of how many units.
    """
    place = ["protocol", "condition", "rollout_id"]
    seen = assignments.filter("supported").select(*place, "unit_id", "context_id").unique()
    total = seen.group_by(place, maintain_order=True).agg(n_target_units=pl.col("unit_id").n_unique().cast(pl.Int64))
    peers = contexts.select("context_id", "peers").explode("peers", empty_as_null=True).drop_nulls("peers")
    peers = peers.select(
        "context_id",
        peer_id=pl.col("peers").struct.field("rollout_id"),
        role=pl.col("peers").struct.field("role"),
    )
    return (
        seen.join(peers, on="context_id", how="inner", validate="m:m")
        .group_by(*place, "peer_id", "role", maintain_order=True)
        .agg(n_units=pl.col("unit_id").n_unique().cast(pl.Int64))
        .join(total, on=place, how="left", validate="m:1")
        .rename({"rollout_id": "target_id"})
        .sort("protocol", "condition", "target_id", "role", "peer_id")
    )
