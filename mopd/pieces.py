"""What each token of a response spells, for showing signals on text.

A token decoded by itself is not always what it stands for: some tokenizers drop a leading space, and a character of
several bytes can be spread over tokens. So pieces are decoded one by one only where that spells the response, and
otherwise as what each token adds to those before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mopd.tokens import Codec

__all__ = ["PIECES", "piece_frame", "token_pieces"]

PIECES = {"rollout_id": pl.String(), "pieces": pl.List(pl.String())}
"""Columns and types of ``pieces.parquet``: a row per scored rollout, a piece per token; joined they are its text."""

LOOK_BACK = 8  # tokens decoded before a new one: what a character's bytes or a joined space can depend on


def token_pieces(ids: Sequence[int], codec: Codec, known: dict[int, str] | None = None) -> list[str]:
    """The text of each token, control tokens as their own text; joined they are ``codec.decode(ids)``.

    A character that several tokens spell stands with the last of them, and the others are empty.

    Args:
        ids: of one response.
        codec: the tokenizer.
        known: pieces by id found before, added to.
    """
    known = {} if known is None else known
    for i in ids:
        if i not in known:
            known[i] = codec.decode([i])
    alone = [known[i] for i in ids]
    return alone if "".join(alone) == codec.decode(ids) and "\ufffd" not in "".join(alone) else _added(ids, codec)


def _added(ids: Sequence[int], codec: Codec) -> list[str]:
    """What each token adds to the text before it."""
    pieces: list[str] = []
    start = done = 0  # tokens before ``start`` are left out of a decoding; before ``done`` all text is out
    for end in range(1, len(ids) + 1):
        before, now = codec.decode(ids[start:done]), codec.decode(ids[start:end])
        if now.endswith("\ufffd") and end < len(ids):  # the rest of a character is still to come
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        start, done = max(start, end - LOOK_BACK, 0), end
    return pieces


def piece_frame(tokens: pl.DataFrame, codec: Codec) -> pl.DataFrame:
    """The pieces of every rollout of ``tokens.parquet``: the rows of ``pieces.parquet``."""
    rollouts = tokens.unique("rollout_id", keep="first", maintain_order=True).select("rollout_id", "token_ids")
    known: dict[int, str] = {}
    rows = [(rollout_id, token_pieces(ids, codec, known)) for rollout_id, ids in rollouts.iter_rows()]
    return pl.DataFrame(rows, schema=PIECES, orient="row")
