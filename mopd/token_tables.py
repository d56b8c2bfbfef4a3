"""What a study says token by token: marks, Δ split by them, and where Δ falls on errors that a checker finds.

All of it comes from scores that are there already; nothing is forwarded.
"""

from __future__ import annotations

import polars as pl

from mopd.by_mark import mark_table, marked_scores
from mopd.inference import DRAWS
from mopd.localisation import checked_steps, localisation_table, step_scores
from mopd.marks import with_marks
from mopd.tokens import Codec

__all__ = ["token_tables"]


def token_tables(
    rollouts: pl.DataFrame,
    assignments: pl.DataFrame,
    contexts: pl.DataFrame,
    tokens: pl.DataFrame,
    codec: Codec,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    confidence: float = 0.95,
) -> dict[str, pl.DataFrame]:
    """What tokens say beyond their sums.

    Returns:
        ``tokens`` with marks, ``marks`` (``mopd.by_mark.MARK_TABLE``), and ``localisation`` of the errors that the
        checker finds (``mopd.localisation.LOCALISATION``).

    Args:
        rollouts: all that can have been shown, also of groups that the study did not look at.
        assignments, contexts, tokens: the study's tables.
        codec: the teacher's tokenizer.
        seed: of the study.
        draws, confidence: of the intervals.
    """
    settings = {"draws": draws, "seed": seed, "confidence": confidence}
    marked = with_marks(tokens, contexts, rollouts, codec, seed=seed)
    checked = checked_steps(rollouts.join(tokens, on="rollout_id", how="semi"))
    return {
        "tokens": marked,
        "marks": mark_table(assignments, marked_scores(marked), **settings),
        "localisation": localisation_table(assignments, step_scores(marked, checked, codec), **settings),
    }
