"""The text of every token, so that a study can be read without its tokenizer.

A token need not be text by itself: byte-level vocabularies split a character over several tokens, others put a space
before a word only where it is not the first. So the pieces of a response are cut such that joined they are the decoded
response; a token that only begins a character has the empty piece, and the character stands with the token that ends
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import polars as pl

from mopd.tokens import Codec

__all__ = ["TEXTS", "line_of_tokens", "text_frame", "token_texts"]

TEXTS = {
    "group_id": pl.String(),
    "rollout_id": pl.String(),
    "token_ids": pl.List(pl.Int32),
    "token_texts": pl.List(pl.String),
}
"""Columns and types of ``texts.parquet``: a row per scored rollout, a piece of text per token."""

UNFINISHED = "\ufffd"


def token_texts(ids: Sequence[int], codec: Codec, known: dict[int, str] | None = None) -> list[str]:
    """A piece of text for each token; joined they are the decoded ids.

    Args:
        ids: of a response.
        codec: the tokenizer that they are of.
        known: decoded single tokens, to be used again; grows.
    """
    known = {} if known is None else known
    for token in set(ids) - known.keys():
        known[token] = codec.decode([token])
    pieces = [known[token] for token in ids]
    return pieces if "".join(pieces) == codec.decode(ids) else _incremental(ids, codec)


def _incremental(ids: Sequence[int], codec: Codec) -> list[str]:
    """Pieces as a stream of tokens would show them: each is what the decoded text of a window gains by a token.

    The window begins one finished piece back, so that the decoder knows it is not at the start of the text. Whatever
    is still unfinished at the end is given to the last token.
    """
    pieces: list[str] = []
    begin = shown = 0  # the window's first token; the first token whose text is still owed
    for end in range(1, len(ids) + 1):
        before, now = codec.decode(ids[begin:shown]), codec.decode(ids[begin:end])
        # bytes that can never become a character must not hold up the rest: none is longer than four
        owed = now.endswith(UNFINISHED) and end < len(ids) and end - shown < 4
        if owed:
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        begin, shown = shown, end
    return pieces


def line_of_tokens(pieces: Sequence[str]) -> list[int]:
    """The line (from 0) on which each piece begins; a piece of a line break belongs to the line that it ends."""
    return [0, *accumulate(piece.count("\n") for piece in pieces)][: len(pieces)]


def text_frame(tokens: pl.DataFrame, contexts: pl.DataFrame, codec: Codec) -> pl.DataFrame:
    """``TEXTS`` of all rollouts in ``tokens.parquet``, in its order.

    Args:
        tokens: ``tokens.parquet``.
        contexts: ``contexts.parquet``, for the groups.
        codec: the tokenizer of the ids.
    """
    groups = contexts.select("context_id", "group_id")
    rows = (
        tokens.select("context_id", "rollout_id", "token_ids")
        .unique("rollout_id", keep="first", maintain_order=True)
        .join(groups, on="context_id", how="left", validate="m:1", maintain_order="left")
        .select("group_id", "rollout_id", "token_ids")
    )
    known: dict[int, str] = {}
    pieces = [token_texts(ids, codec, known) for ids in rows["token_ids"].to_list()]
    return rows.with_columns(pl.Series("token_texts", pieces, dtype=TEXTS["token_texts"])).select(list(TEXTS))
