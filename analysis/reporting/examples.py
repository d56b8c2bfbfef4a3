"""Examples in a report: responses with their tokens coloured by Δ, taken by a rule and not by how they look."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from analysis.charts import condition_order
from analysis.reporting.finished import FinishedStudy
from mopd.conditions import condition
from mopd.contrasts import PRIMARY
from mopd.store import StudyError

__all__ = ["RULE", "Example", "Token", "examples", "shown_condition"]

MOST_TOKENS = 400
RULE = (
    "The groups whose AUC of delta_mean is the lowest, the median and the highest; of each the first pair in order of "
    "its id. Blue, underlined: the teacher raises the token's log-prob; orange, dotted: it lowers it. Strength up to "
    "the 95th percentile of |Δ| in the examples; hover for numbers."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A piece of text, Δ in nats, and Δ as a share of the strongest colour, in [-1, 1]."""

    text: str
    delta: float
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A target under a context: ``place`` says which group it is, ``cut`` how many tokens are not shown."""

    place: str
    group_id: str
    rollout_id: str
    success: bool
    prompt: str
    tokens: tuple[Token, ...]
    delta_mean: float
    cut: int


def shown_condition(study: FinishedStudy) -> str | None:
    """The condition of the examples: the lead of the declared family, or the last one that shows peers."""
    there = condition_order(set(study.tables["metrics"]["condition"]))
    if PRIMARY[0] in there:
        return PRIMARY[0]
    with_peers = [name for name in there if condition(name).slots]
    return with_peers[-1] if with_peers else (there[-1] if there else None)


def examples(study: FinishedStudy) -> list[Example] | None:
    """Examples of the first fair protocol; None if the study does not say what its tokens spell.

    Needs ``tokens.parquet`` and ``texts.parquet``.
    """
    if not all((study.path / f"{name}.parquet").is_file() for name in ("tokens", "texts")):
        return None
    name = shown_condition(study)
    protocol = study.protocol
    if name is None or not protocol:
        return []
    rows = study.tables["assignments"].filter("supported", protocol=protocol, condition=name)
    found = [
        example
        for place, group_id in _places(study, protocol, name)
        for example in _of_group(study, rows.filter(group_id=group_id), place)
    ]
    return _scaled(found)


def _places(study: FinishedStudy, protocol: str, name: str) -> list[tuple[str, str]]:
    """The groups with the lowest, median and highest AUC, each once; ties by id."""
    values = (
        study.tables["group_values"]
        .filter(protocol=protocol, condition=name, metric="auc", score="delta_mean")
        .filter(pl.col("value").is_not_null())
        .sort("value", "group_id")
    )
    ids = values["group_id"].to_list()
    if not ids:
        return []
    auc = dict(zip(ids, values["value"].to_list(), strict=True))
    places = {ids[0]: "lowest"}
    places = places | {ids[-1]: "highest"} if len(ids) > 1 else places
    if len(ids) > 2:
        places = {ids[0]: "lowest", ids[(len(ids) - 1) // 2]: "median", ids[-1]: "highest"}
    return [(f"{word} AUC of {len(ids)} group{'s' * (len(ids) != 1)} ({auc[g]:.3f})", g) for g, word in places.items()]


def _of_group(study: FinishedStudy, rows: pl.DataFrame, place: str) -> list[Example]:
    """The first unit's first success and first failure."""
    unit = rows.filter(pl.col("unit_id") == pl.col("unit_id").min()).sort("rollout_id")
    targets = [row for success in (True, False) for row in unit.filter(success=success).head(1).rows(named=True)]
    return [_example(study, row, place) for row in targets]


def _example(study: FinishedStudy, row: Mapping[str, Any], place: str) -> Example:
    """One target under one context; colours are given their strength when all examples are known."""
    scored = _one(study, "tokens", context_id=row["context_id"], rollout_id=row["rollout_id"])
    pieces = _one(study, "texts", rollout_id=row["rollout_id"])["token_texts"]
    teacher, student = (np.asarray(scored[f"{who}_logprob"], np.float64) for who in ("teacher", "student"))
    delta = teacher - student
    spelled = list(zip(pieces, delta.tolist(), strict=True))
    return Example(
        place=place,
        group_id=row["group_id"],
        rollout_id=row["rollout_id"],
        success=row["success"],
        prompt=_prompt(study, row["group_id"]),
        tokens=tuple(Token(text=piece, delta=d, strength=0.0) for piece, d in spelled[:MOST_TOKENS]),
        delta_mean=float(delta.mean()),
        cut=max(0, len(delta) - MOST_TOKENS),
    )


def _one(study: FinishedStudy, name: str, **wanted: str) -> dict[str, Any]:
    rows = study.rows(name, **wanted)
    if rows is None or rows.height != 1:
        held = 0 if rows is None else rows.height
        raise StudyError(f"{study.path / name}.parquet has {held} rows for {wanted}, expected 1; make the study again")
    return rows.row(0, named=True)


def _prompt(study: FinishedStudy, group_id: str) -> str:
    prompt = study.tables["rollouts"].filter(group_id=group_id)["prompt"][0]
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _scaled(found: list[Example]) -> list[Example]:
    """The same with the strengths of their colours, on one scale for all."""
    sizes = [abs(token.delta) for example in found for token in example.tokens]
    top = max(float(np.quantile(sizes, 0.95)), 1e-9) if sizes else 1.0
    return [
        dataclasses.replace(
            example,
            tokens=tuple(
                dataclasses.replace(t, strength=round(float(np.clip(t.delta / top, -1, 1)), 3)) for t in example.tokens
            ),
        )
        for example in found
    ]
