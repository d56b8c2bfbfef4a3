"""How alike a target is to the peers that its context shows: the first thing to hold a gain against.

A teacher may rank a response highly because it copies what it was just shown. Two measures, of the normalised text
(``mopd.peers.normalise``) of target and peer, whatever the context shows of the peer (a summary, its words shuffled):

* ``edit_similarity``: 1 - Levenshtein distance in characters / length of the longer text (rapidfuzz).
* ``ngram_overlap``: share of the target's distinct runs of ``NGRAM`` words that the peer has too.

Both lie in [0, 1] and are those of the peer that is closest by that measure. Null where the context shows no peer;
``ngram_overlap`` also where the target has fewer than ``NGRAM`` words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from mopd.peers import normalise

__all__ = [
    "NGRAM",
    "SIMILARITY_TABLE",
    "edit_similarities",
    "near_duplicate_rates",
    "ngram_overlap",
    "shown_peers",
    "similarity_table",
]

NGRAM = 4
SIMILARITY_TABLE = {
    **dict.fromkeys(("context_id", "rollout_id"), pl.String()),
    **dict.fromkeys(("edit_similarity", "ngram_overlap"), pl.Float64()),
}
"""Columns and types of ``similarity.parquet``: a row per (context, target)."""


def edit_similarities(a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    """Normalised Levenshtein similarity of each text of ``a`` to that of ``b``, shape (N,), in [0, 1].

    1.0 for equal texts, two empty ones among them. ``rapidfuzz.distance.Levenshtein.normalized_similarity``.
    """
    return cpdist(a, b, scorer=Levenshtein.normalized_similarity, dtype=np.float64)


def ngrams(text: str, n: int = NGRAM) -> frozenset[tuple[str, ...]]:
    """Distinct runs of ``n`` words, parted by white space."""
    words = text.split()
    return frozenset(zip(*(words[i:] for i in range(n)), strict=False))  # ends with the shortest, as it should


def ngram_overlap(target: Iterable[tuple[str, ...]], peer: Iterable[tuple[str, ...]]) -> float | None:
    """Share of the target's n-grams that the peer has, in [0, 1]; None for a target without any."""
    own = frozenset(target)
    return len(own & frozenset(peer)) / len(own) if own else None


def shown_peers(contexts: pl.DataFrame) -> pl.DataFrame:
    """(context_id, peer_id) of every peer that a context shows, once each; feedback on a peer is not the peer."""
    peers = contexts.select("context_id", "peers").explode("peers").drop_nulls("peers")
    return (
        peers.select("context_id", pl.col("peers").struct.unnest())
        .filter(pl.col("role") != "feedback")
        .select("context_id", peer_id="rollout_id")
        .unique(maintain_order=True)
    )


def similarity_table(rollouts: pl.DataFrame, contexts: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Similarity of every target to the peers of its context: the rows of ``similarity.parquet``.

    Args:
        rollouts: targets and peers, peers of other prompts as well: ``rollout_id, response``.
        contexts: ``context_id, peers`` as in ``contexts.parquet``.
        scores: ``context_id, rollout_id`` of every (context, target).

    Raises:
        ValueError: a target or peer is not among the rollouts.
    """
    keys = scores.select("context_id", "rollout_id")
    met = keys.join(shown_peers(contexts), on="context_id", how="inner")
    pairs = met.select("rollout_id", "peer_id").unique(maintain_order=True)
    pairs = pairs.with_columns(_of_pairs(pairs, rollouts))
    closest = (
        met.join(pairs, on=["rollout_id", "peer_id"], how="left", validate="m:1")
        .group_by("context_id", "rollout_id", maintain_order=True)
        .agg(pl.col("edit_similarity", "ngram_overlap").max())
    )
    table = keys.join(closest, on=["context_id", "rollout_id"], how="left", validate="1:1", maintain_order="left")
    return table.select(pl.col(name).cast(dtype) for name, dtype in SIMILARITY_TABLE.items())


def _of_pairs(pairs: pl.DataFrame, rollouts: pl.DataFrame) -> list[pl.Series]:
    """Both measures of each (rollout_id, peer_id)."""
    wanted = set(pairs["rollout_id"]) | set(pairs["peer_id"])
    texts = {
        rollout_id: normalise(response)
        for rollout_id, response in rollouts.select("rollout_id", "response").iter_rows()
        if rollout_id in wanted
    }
    if missing := sorted(wanted - texts.keys()):
        raise ValueError(
            f"{len(missing)} targets or peers, {missing[0]!r} first, are not among the rollouts; give the whole table "
            "that the contexts were made from"
        )
    grams = {rollout_id: ngrams(text) for rollout_id, text in texts.items()}
    edits: dict[tuple[str, str], int] = {}  # unordered pairs: the edit distance is the same both ways
    place = [edits.setdefault((a, b) if a < b else (b, a), len(edits)) for a, b in pairs.iter_rows()]
    similar = edit_similarities([texts[a] for a, _ in edits], [texts[b] for _, b in edits])
    overlap = [ngram_overlap(grams[a], grams[b]) for a, b in pairs.iter_rows()]
    return [
        pl.Series("edit_similarity", similar[np.array(place, dtype=np.int64)], pl.Float64),
        pl.Series("ngram_overlap", overlap, pl.Float64),
    ]


def near_duplicate_rates(rollouts: pl.DataFrame) -> pl.DataFrame:
    """Share of each group's judged, non-empty rollouts whose normalised text another of the group has.

    Returns:
        ``task, group_id, value`` in [0, 1], sorted; null for a group with fewer than two such rollouts.
    """
    judged = rollouts.filter(pl.col("success").is_not_null() & (pl.col("response").str.strip_chars() != ""))
    groups = judged.select(
        "task", "group_id", pl.Series("text", [normalise(text) for text in judged["response"]], pl.String)
    )
    twice = pl.col("text").is_duplicated()
    return (
        groups.group_by("task", "group_id", maintain_order=True)
        .agg(pl.when(pl.len() > 1).then(twice.mean()).alias("value"))
        .sort("task", "group_id")
    )
