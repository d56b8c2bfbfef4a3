"""Which tokens carry a signal: marks on tokens, and scores split by them.

A teacher that reads a peer can gain by copying it. A token is *copied* if it lies in a run of at least ``MATCH`` tokens
that some shown peer has too, else *novel*; it is *in the answer* if its characters overlap the last place where the
extracted answer stands in the response; it is of *high entropy* if it is in the top fifth of the student's entropy
within its response. What is left of a condition's AUC on novel tokens outside the answer is what copying and answer
matching cannot explain.

Scores by mark are means of Δ (teacher minus student) over a target's tokens of that kind, in nats a token: null where
a target has none, which drops it from all conditions (``mopd.metrics.group_values``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from mopd.tokens import Codec

__all__ = [
    "MARKED_SCORES",
    "MARKS",
    "MATCH",
    "answer_mask",
    "copied_mask",
    "high_entropy_mask",
    "mark_frame",
    "marked_scores",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MATCH = 8
TOP_SHARE = 0.2

MARKS = {
    **dict.fromkeys(("context_id", "rollout_id"), pl.String()),
    **dict.fromkeys(("copied", "in_answer", "high_entropy"), pl.List(pl.Boolean())),
}
"""Columns and types of ``marks.parquet``: a row per context and target, a value per token; null where it is not known
(no extracted answer in the text, a teacher without entropies)."""


def copied_mask(ids_T: ArrayLike, peers: Sequence[ArrayLike], *, match: int = MATCH) -> Bools:
    """Whether each token lies in a run of at least ``match`` tokens that a peer has; shape (T,)."""
    ids = np.asarray(ids_T, dtype=np.int64)
    copied = np.zeros(len(ids), dtype=np.bool_)
    runs = [_windows(np.asarray(peer, dtype=np.int64), match) for peer in peers]
    known = {run for peer in runs for run in peer}
    for start, run in enumerate(_windows(ids, match)):
        if run in known:
            copied[start : start + match] = True
    return copied


def _windows(ids: Ints, match: int) -> list[bytes]:
    return [window.tobytes() for window in sliding_window_view(ids, match)] if len(ids) >= match else []


def answer_mask(ids_T: ArrayLike, response: str, answer: str | None, codec: Codec) -> Bools | None:
    """Whether each token's characters overlap the last occurrence of the answer in the response; shape (T,).

    None if there is no answer, or if it does not stand in the response as it was extracted.
    """
    ids = [int(i) for i in np.asarray(ids_T)]
    wanted = (answer or "").strip()
    start = response.rfind(wanted) if wanted else -1
    if start < 0:
        return None
    mask = np.zeros(len(ids), dtype=np.bool_)
    end = start + len(wanted)
    spoken = len(ids)
    while spoken and not codec.decode(ids[spoken - 1 : spoken], skip_special=True):
        spoken -= 1  # the end token is no part of an answer
    first = _holder(ids[:spoken], start, codec)
    # up to the token before the next character's, or that one if it holds the answer's last character as well
    last = max(_holder(ids[:spoken], end - 1, codec) + 1, _holder(ids[:spoken], end, codec))
    mask[first : min(last, spoken)] = True
    return mask


def _holder(ids: Sequence[int], character: int, codec: Codec) -> int:
    """Index of the token with which a character begins to be there; the number of tokens if none has it.

    The decoded length grows with the tokens, so that a few decodings find it.
    """
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(codec.decode(ids[: middle + 1], skip_special=True)) > character:
            high = middle
        else:
            low = middle + 1
    return low


def high_entropy_mask(entropy_T: ArrayLike) -> Bools:
    """Whether each token is among the top fifth by entropy; shape (T,). Equal entropies at the limit are all in."""
    entropy = np.asarray(entropy_T, dtype=np.float64)
    if not len(entropy):
        return np.zeros(0, dtype=np.bool_)
    count = max(1, round(TOP_SHARE * len(entropy)))
    return entropy >= np.sort(entropy)[-count]


def mark_frame(
    tokens: pl.DataFrame, contexts: pl.DataFrame, rollouts: pl.DataFrame, codec: Codec, *, match: int = MATCH
) -> pl.DataFrame:
    """Marks of every scored token.

    Args:
        tokens: ``tokens.parquet``.
        contexts: ``contexts.parquet``, for who was shown.
        rollouts: all rollouts that can have been shown, with ``rollout_id``, ``response`` and ``answer``.
        codec: the teacher's tokenizer.
        match: fewest tokens of a copied run.

    Returns:
        ``MARKS``, in the order of ``tokens``.
    """
    said = {
        r: (text or "", answer) for r, text, answer in rollouts.select("rollout_id", "response", "answer").iter_rows()
    }
    shown = {
        context_id: tuple(dict.fromkeys(p["rollout_id"] for p in peers if p["role"] != "feedback"))
        for context_id, peers in contexts.select("context_id", "peers").iter_rows()
    }
    encoded: dict[str, list[int]] = {}
    in_answer: dict[str, list[bool] | None] = {}
    rows = []
    columns = ("context_id", "rollout_id", "token_ids", "student_entropy")
    for context_id, rollout_id, ids, entropy in tokens.select(columns).iter_rows():
        for peer in shown[context_id]:
            if peer not in encoded:
                encoded[peer] = codec.encode_text(said[peer][0])
        if rollout_id not in in_answer:
            mask = answer_mask(ids, *said[rollout_id], codec)
            in_answer[rollout_id] = None if mask is None else mask.tolist()
        copied = copied_mask(ids, [encoded[peer] for peer in shown[context_id]], match=match)
        high = None if entropy is None else high_entropy_mask(entropy).tolist()
        rows.append((context_id, rollout_id, copied.tolist(), in_answer[rollout_id], high))
    return pl.DataFrame(rows, schema=MARKS, orient="row")


def _select(marks: Mapping[str, Bools | None], position_T: NDArray[np.float64]) -> dict[str, Bools | None]:
    """For each score by mark, the tokens that it is over; None if that is not known."""
    copied, answer, high = marks["copied"], marks["in_answer"], marks["high_entropy"]
    outside = None if answer is None else ~answer
    return {
        "delta_copied": copied,
        "delta_novel": None if copied is None else ~copied,
        "delta_answer": answer,
        "delta_novel_outside_answer": None if copied is None or outside is None else ~copied & outside,
        "delta_high_entropy": high,
        "delta_first_half": position_T < 0.5,
        "delta_second_half": position_T >= 0.5,
    }


_NO_TOKEN = np.zeros(0, dtype=np.bool_)
MARKED_SCORES = tuple(_select(dict.fromkeys(("copied", "in_answer", "high_entropy"), _NO_TOKEN), np.zeros(0)))
"""Columns that ``marked_scores`` adds: means of Δ over tokens of a kind."""


def marked_scores(tokens: pl.DataFrame, marks: pl.DataFrame) -> pl.DataFrame:
    """Mean Δ of each (context, target) over its tokens of each kind, and the share of copied tokens.

    Args:
        tokens: ``tokens.parquet``.
        marks: what ``mark_frame`` made of it.

    Returns:
        context_id, rollout_id, copied_share, and ``MARKED_SCORES``, null where a target has no such token.
    """
    joined = tokens.select("context_id", "rollout_id", "teacher_logprob", "student_logprob").join(
        marks, on=["context_id", "rollout_id"], how="left", validate="1:1", maintain_order="left"
    )
    rows = []
    for context_id, rollout_id, teacher, student, *masks in joined.iter_rows():
        delta = np.asarray(teacher, dtype=np.float64) - np.asarray(student, dtype=np.float64)
        known = {
            name: None if mask is None else np.asarray(mask, dtype=np.bool_)
            for name, mask in zip(("copied", "in_answer", "high_entropy"), masks, strict=True)
        }
        position = (np.arange(len(delta)) + 0.5) / max(len(delta), 1)
        means = [
            float(delta[mask].mean()) if mask is not None and mask.any() else None
            for mask in _select(known, position).values()
        ]
        copied = known["copied"]
        rows.append((context_id, rollout_id, None if copied is None else float(copied.mean()), *means))
    schema = {
        "context_id": pl.String(),
        "rollout_id": pl.String(),
        "copied_share": pl.Float64(),
        **dict.fromkeys(MARKED_SCORES, pl.Float64()),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
