"""The tables of a study made of its plans and token scores, and the counts of what took part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from mopd.planning import GroupPlan
from mopd.store import SCHEMAS

__all__ = ["context_frame", "counts", "score_frame"]


def context_frame(plans: Iterable[GroupPlan], model: str, template_hash: str, text_prompts: bool) -> pl.DataFrame:
    """``contexts.parquet``; ``text_prompts`` says that prompts are plain text."""
    schema = dict(SCHEMAS["contexts"])
    if text_prompts:
        schema["messages"] = pl.String()
    rows = [
        {
            "context_id": context_id,
            "condition": context.condition,
            "protocol": protocol,
            "group_id": context.group_id,
            "peers": [{"rollout_id": p.rollout_id, "role": p.role} for p in context.peers],
            "messages": context.messages if text_prompts else list(context.messages),
            "token_ids": context.token_ids.tolist(),
            "n_tokens": len(context.token_ids),
            "cuts": [{"section": c.section, "tokens_removed": c.tokens_removed} for c in context.cuts],
            "model": model,
            "template_hash": template_hash,
        }
        for plan in plans
        for context_id, (protocol, context) in plan.contexts.items()
    ]
    return pl.DataFrame(rows, schema=schema)


def score_frame(contexts: pl.DataFrame, rollouts: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    """``scores.parquet``: sums and means over a response's tokens, summed in float64."""
    wide = pl.List(pl.Float64)
    teacher, student = pl.col("teacher_logprob").cast(wide), pl.col("student_logprob").cast(wide)
    n = pl.col("token_ids").list.len()
    return (
        tokens.join(
            contexts.select("context_id", "condition", "protocol", "group_id"),
            on="context_id",
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .join(
            rollouts.select("rollout_id", "success"),
            on="rollout_id",
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .with_columns(n_tokens=n.cast(pl.Int64), teacher_logprob=teacher.list.sum(), student_logprob=student.list.sum())
        .with_columns(
            teacher_mean=pl.col("teacher_logprob") / pl.col("n_tokens"),
            student_mean=pl.col("student_logprob") / pl.col("n_tokens"),
            delta_sum=pl.col("teacher_logprob") - pl.col("student_logprob"),
        )
        .with_columns(delta_mean=pl.col("delta_sum") / pl.col("n_tokens"))
        .select(list(SCHEMAS["scores"]))
    )


def _mixed(plan: GroupPlan) -> bool:
    return bool(plan.group.successes and plan.group.failures)


def counts(plans: Sequence[GroupPlan], assignments: pl.DataFrame, not_looked_at: int) -> dict[str, Any]:
    """How many took part, and how many did not and why."""
    dropped: Counter[str] = Counter()
    for plan in plans:
        dropped.update(plan.dropped)
    units = assignments.group_by("protocol", "condition", "group_id", "unit_id").agg(
        pl.col("supported").any(),
        pl.col("context_id").is_null().any().alias("undefined"),
        pl.col("reason").drop_nulls().first(),
    )
    undefined: dict[str, dict[str, dict[str, int]]] = {}
    table = (
        units.filter("undefined")
        .group_by("protocol", "condition", "reason")
        .len()
        .sort("protocol", "condition", "reason")
    )
    for protocol, cond, reason, n in table.iter_rows():
        undefined.setdefault(protocol, {}).setdefault(cond, {})[reason] = n
    per_protocol = {}
    for (protocol,), part in units.group_by("protocol", maintain_order=False):
        one = part.filter(pl.col("condition") == part["condition"].min())
        per_protocol[protocol] = {
            "units": one.height,
            "units_compared": int(one["supported"].sum()),
            "units_of_one_class": int((one["reason"] == "one_class").sum()),
        }
    return {
        "groups": len(plans),
        "groups_compared": sum(p.counts for p in plans),
        "groups_without_common_support": sum(_mixed(p) and not p.counts for p in plans),
        "groups_not_looked_at": not_looked_at,
        "rollouts": sum(len(p.group.rollouts) for p in plans),
        "retokenised_responses": sum(not r.exact for p in plans for r in p.responses.values()),
        "shortened_contexts": sum(bool(c.cuts) for p in plans for _, c in p.contexts.values()),
        "dropped": dict(sorted(dropped.items())),
        "units": dict(sorted(per_protocol.items())),
        "undefined": undefined,
    }
