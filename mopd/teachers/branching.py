"""Reads a trie depth-first with the model's own cache, forked where branches part.

For models that hand a state from token to token (Qwen3-Next, Qwen3.5, LFM2): their layers write states in place, so a
fork clones them. Keys and values are never written in place; a fork shares them until the model appends. What
continues a stem to the end of a response is read in right-padded batches: nothing before a pad can see it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from math import isinf
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mopd.teachers.plan import Branch, Segment, Trie, branches, chunks, leaf_batches

__all__ = ["BranchReader"]

SAVING = 64
"""Tokens that a stem must save: about what one more forward of a single row costs beside a batch."""


class BranchReader:
    """Hidden states of a trie's stream.

    Args:
        model: a ``PreTrainedModel``.
        saving: tokens that a shared prefix must save to be read apart; infinity shares nothing.
        cache_budget: most tokens that a batch of leaves holds in caches; None for no limit.
    """

    def __init__(self, model: Any, *, saving: float = SAVING, cache_budget: int | None = None) -> None:
        self.decoder = model.get_decoder()
        self.config = model.config
        self.device = next(model.parameters()).device
        self.saving = saving
        self.cache_budget = cache_budget

    def layout(self, trie: Trie) -> list[Segment]:
        """The segments in the order of the stream."""
        return list(branches(trie, saving=self.saving).segments())

    def read(self, trie: Trie, budget: int) -> Iterator[tuple[int, torch.Tensor]]:
        """First place in the stream and last hidden states [n, H].

        Args:
            trie: what is read.
            budget: most tokens of a forward, padding included; where nothing is shared (``saving`` is infinite), a
                sequence that is longer is read whole and by itself.
        """
        at = 0
        for batch, hidden in self._walk(trie, branches(trie, saving=self.saving), (), budget):
            flat = torch.cat([rows[: len(segment)] for segment, rows in zip(batch, hidden, strict=True)])
            yield at, flat
            at += len(flat)

    def _walk(
        self, trie: Trie, branch: Branch, above: tuple[DynamicCache, ...], budget: int
    ) -> Iterator[tuple[Sequence[Segment], torch.Tensor]]:
        """Batches with their hidden states [B, T, H]; ``above`` are the caches of the stems from the root down."""
        if len(branch.stem):
            cache = self._fork(above[-1], 1) if above else DynamicCache(config=self.config)
            for piece in chunks([branch.stem], budget):
                yield piece, self._forward(trie, piece, cache)
            _share(above, cache)
            above = (*above, cache)
        for batch in leaf_batches(branch.leaves, budget, self.cache_budget):
            past = self._fork(above[-1], len(batch)) if above else self._for_parts(batch, budget)
            for pieces in self._in_parts(batch, budget) if past is not None else [batch]:
                yield pieces, self._forward(trie, pieces, past)
        for subtree in branch.branches:
            yield from self._walk(trie, subtree, above, budget)

    def _for_parts(self, batch: list[Segment], budget: int) -> DynamicCache | None:
        """An empty cache for a whole sequence over the budget, which is then read part by part; else None.

        A reader that shares nothing was tested without the model's cache, and reads a sequence in one piece.
        """
        if isinf(self.saving) or len(batch[0]) <= budget:
            return None
        return DynamicCache(config=self.config)

    @staticmethod
    def _in_parts(batch: list[Segment], budget: int) -> Iterator[list[Segment]]:
        """A leaf that is longer than the budget part by part; every other batch as it is."""
        if len(batch) == 1:
            yield from chunks(batch, budget)
        else:
            yield batch

    def _forward(self, trie: Trie, batch: Sequence[Segment], cache: DynamicCache | None) -> torch.Tensor:
        """Last hidden states [B, T, H] of right-padded rows behind the cache's path."""
        tokens = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
        for row, s in zip(tokens, batch, strict=True):
            row[: len(s)] = trie.sequences[s.sequence][s.start : s.end]
        out = self.decoder(
            input_ids=torch.from_numpy(tokens).to(self.device), past_key_values=cache, use_cache=cache is not None
        )
        return out.last_hidden_state

    @staticmethod
    def _fork(cache: DynamicCache, rows: int) -> DynamicCache:
        """A cache that starts as ``rows`` copies of this one; writing to it leaves this one as it is."""
        forked = copy.copy(cache)
        forked.layers = [_fork_layer(layer, rows) for layer in cache.layers]
        return forked


def _fork_layer(layer: Any, rows: int) -> Any:
    forked = copy.copy(layer)
    for name, value in vars(layer).items():
        if name in ("keys", "values") and value is not None and value.numel():
            setattr(forked, name, value.expand(rows, *value.shape[1:]))
        elif isinstance(value, dict):  # the states of linear attention, by number
            repeated = {k: v.repeat(rows, *[1] * (v.dim() - 1)) if torch.is_tensor(v) else v for k, v in value.items()}
            setattr(forked, name, repeated)
    return forked


def _share(above: Sequence[DynamicCache], below: DynamicCache) -> None:
    """Let the caches of a path look at the beginning of its last one's keys and values, so that they are held once."""
    for cache in above:
        for upper, lower in zip(cache.layers, below.layers, strict=True):
            _share_layer(upper, lower)


def _share_layer(upper: Any, lower: Any) -> None:
    keys, values = getattr(upper, "keys", None), getattr(upper, "values", None)
    if keys is None or values is None or not keys.numel() or getattr(upper, "is_sliding", False):
        return
    upper.keys = lower.keys[..., : keys.shape[-2], :]
    upper.values = lower.values[..., : values.shape[-2], :]
