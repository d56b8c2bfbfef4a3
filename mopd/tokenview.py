"""One scored response token by token: what each context says of each token, and what two contexts differ in.

Log-probs and entropies are in nats. ``Δ = teacher − student``: the direction in which distillation pushes the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from mopd.equations import equations_in
from mopd.texts import line_of_tokens

__all__ = ["error_mask", "jump_targets", "line_table", "marks_of", "token_difference", "token_table"]

RENAMED = {"position": "quarter"}  # a mark of that name is the quarter of the response
RANKS = ("teacher_rank", "student_rank")
VALUES = ("teacher", "student", "delta", "entropy", "student_entropy")


def token_table(
    tokens: Mapping[str, Any],
    texts: Sequence[str] | None = None,
    marks: Mapping[str, Sequence[Any] | None] | None = None,
) -> pl.DataFrame:
    """A row per token of one scored response.

    Args:
        tokens: a row of ``tokens.parquet``.
        texts: the tokens' pieces of text (``mopd.texts``); null if they are not known.
        marks: further values per token by name; those that are null are left out.

    Returns:
        ``position`` (from 0), ``token_id``, ``text``, ``line`` (from 0; null without texts), ``teacher``, ``student``,
        ``delta``, ``cumulative`` (sum of Δ up to and with the token), ``entropy``, ``student_entropy`` (all nats,
        entropies null if the teacher has none), ``teacher_rank`` and ``student_rank`` (1 for the likeliest token of the
        vocabulary; null likewise), ``rank`` (1 for the token with the largest \\|Δ\\|), and the marks.

    Raises:
        ValueError: texts or marks have another length than the response.
    """
    n = len(tokens["token_ids"])
    given = {"texts": texts, **(marks or {})}
    for name, values in given.items():
        if values is not None and len(values) != n:
            raise ValueError(
                f"{name} of rollout {tokens['rollout_id']} has {len(values)} values for {n} tokens; "
                "it is of another study: make it again"
            )
    frame = pl.DataFrame(
        {
            "position": range(n),
            "token_id": tokens["token_ids"],
            "text": [None] * n if texts is None else list(texts),
            "line": [None] * n if texts is None else line_of_tokens(texts),
            "teacher": tokens["teacher_logprob"],
            "student": tokens["student_logprob"],
            "entropy": tokens.get("entropy") or [None] * n,
            "student_entropy": tokens.get("student_entropy") or [None] * n,
            "teacher_rank": tokens.get("teacher_rank") or [None] * n,
            "student_rank": tokens.get("student_rank") or [None] * n,
        },
        schema={
            "position": pl.Int64,
            "token_id": pl.Int64,
            "text": pl.String,
            "line": pl.Int64,
            **dict.fromkeys(("teacher", "student", "entropy", "student_entropy"), pl.Float64),
            **dict.fromkeys(RANKS, pl.Int64),
        },
    ).with_columns(delta=pl.col("teacher") - pl.col("student"))
    frame = frame.with_columns(cumulative=pl.col("delta").cum_sum(), rank=_rank("delta"))
    return frame.with_columns(pl.Series(name, list(v)) for name, v in (marks or {}).items() if v is not None)


def _rank(column: str) -> pl.Expr:
    return pl.col(column).abs().rank("ordinal", descending=True).cast(pl.Int64)


def token_difference(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """``second`` minus ``first``, of one response under two contexts.

    Returns:
        ``position, token_id, text, line``; ``teacher``, ``student``, ``delta``, ``entropy``, ``student_entropy`` as
        differences in nats, ``cumulative`` and ``rank`` of the difference in Δ.

    Raises:
        ValueError: the two are not of the same tokens.
    """
    if first["token_id"].to_list() != second["token_id"].to_list():
        raise ValueError("the two are scores of different responses: a difference is of one response only")
    same = first.select("position", "token_id", "text", "line")
    frame = same.with_columns((second[name] - first[name]).alias(name) for name in VALUES)
    return frame.with_columns(cumulative=pl.col("delta").cum_sum(), rank=_rank("delta"))


def error_mask(texts: Sequence[str]) -> list[bool]:
    """Whether each token's characters overlap an equation of the response that does not hold (``mopd.equations``)."""
    wrong = [(e.start, e.end) for e in equations_in("".join(texts)) if e.holds is False]
    mask, at = [], 0
    for text in texts:
        mask.append(any(start < at + len(text) and at < end for start, end in wrong))
        at += len(text)
    return mask


def line_table(tokens: pl.DataFrame) -> pl.DataFrame:
    """Per line of the text: ``line`` (from 0), ``n_tokens``, ``delta`` (sum over its tokens) and ``teacher`` (mean).

    Args:
        tokens: a ``token_table`` or ``token_difference`` with texts.
    """
    return tokens.group_by("line", maintain_order=True).agg(
        n_tokens=pl.len().cast(pl.Int64), delta=pl.col("delta").sum(), teacher=pl.col("teacher").mean()
    )


def marks_of(row: Mapping[str, Any], n_tokens: int) -> dict[str, list[Any]]:
    """The columns of a row that hold a value for each of a response's tokens, by name: booleans or numbers.

    Args:
        row: of ``tokens.parquet``, ``marks.parquet`` or another table with a row per (context, target).
        n_tokens: of the response.
    """
    known = {"token_ids", "teacher_logprob", "student_logprob", "entropy", "student_entropy", "token_texts", *RANKS}
    return {
        RENAMED.get(name, name): value
        for name, value in row.items()
        if name not in known
        and isinstance(value, list)
        and len(value) == n_tokens
        and all(v is None or isinstance(v, bool | int | float) for v in value)
    }


def jump_targets(tokens: pl.DataFrame, *, largest: int = 10) -> dict[str, list[int]]:
    """Positions worth going to: the tokens with the largest \\|Δ\\|, and where each run of a boolean mark begins.

    Args:
        tokens: a ``token_table`` or ``token_difference``.
        largest: how many of the largest.
    """
    ranked = tokens.filter(pl.col("rank") <= largest).sort("rank")
    targets = {"largest |Δ|": ranked["position"].to_list()}
    for name in [name for name, kind in tokens.schema.items() if kind == pl.Boolean]:
        mark = pl.col(name).fill_null(False)
        begins = tokens.filter(mark & ~mark.shift(1, fill_value=False))
        targets[name.replace("_", " ")] = begins["position"].to_list()
    return {words: places for words, places in targets.items() if places}
