"""Reads a whole trie as one stream of tokens, each distinct prefix token once and nothing padded.

The stream holds the tokens of all branches one after the other (``plan.packed_segments``), cut into chunks that go
through the model as one row: all matrix products are as large as the token budget allows, however small the branches
are. Only attention knows of branches. It keeps the keys and values of the current path in one buffer a layer; a
segment writes its own behind the path that it continues, over those of the branch before it, and attends to the
buffer up to itself. So nothing is copied for siblings, and what is held beside a chunk is one path from root to leaf.

This needs a model of transformers whose layers call ``AttentionInterface`` and look back by attention alone. A state
handed from token to token (linear attention, convolutions) does not branch this way: see ``mopd.teachers.branching``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mopd.teachers.plan import Segment, Trie, chunks, packed_segments

__all__ = ["PackedReader"]

NAME = "mopd_path"
LAYER_TYPES = {"full_attention", "sliding_attention"}


class Path:
    """Keys and values of the path that is being read, and the segments of the chunk in the model now.

    Args:
        capacity: tokens of the longest path.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.segments: Sequence[Segment] = ()
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[tuple[int, int, int | None], Any] = {}

    def enter(self, segments: Sequence[Segment]) -> None:
        """Make these the segments of the chunk."""
        self.segments = segments
        self._masks = {}

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers [1, heads, capacity, D] of a layer."""
        if index not in self._layers:
            buffers = [x.new_empty(1, x.shape[1], self.capacity, x.shape[3]) for x in (key, value)]
            self._layers[index] = (buffers[0], buffers[1])
        return self._layers[index]

    def mask(self, before: int, n: int, window: int | None, like: torch.Tensor) -> Any:
        """What ``n`` tokens may see of ``before`` earlier ones and of themselves: [n, before + n], or None for all."""
        if window is None and n == 1:
            return None
        if window is None and like.is_cuda:
            return causal_lower_right(n, before + n)
        name = (before, n, window)
        if name not in self._masks:
            back = torch.arange(before, before + n)[:, None] - torch.arange(before + n)
            seen = (back >= 0) if window is None else (back >= 0) & (back < window)
            mask = torch.zeros(n, before + n, dtype=like.dtype).masked_fill_(~seen, -torch.inf)
            self._masks[name] = mask.to(like.device)
        return self._masks[name]


_reading: ContextVar[Path] = ContextVar("mopd_path")


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a chunk along the path: query [1, H, N, D], key and value [1, KV, N, D] give [1, N, H, D].

    Registered with ``transformers.AttentionInterface``; segments are attended one after the other, because each
    overwrites what the one before it left in the path's buffers.

    Raises:
        NotImplementedError: the layer asks for something that is not done here.
    """
    unknown = {"attention_mask": attention_mask, "softcap": softcap, "s_aux": s_aux, "dropout": dropout or None}
    asked = [name for name, given in unknown.items() if given is not None]
    if asked or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(asked) or 'a look ahead'}")
    path = _reading.get()
    keys, values = path.layer(module.layer_idx, key, value)
    grouped = query.shape[1] != key.shape[1]
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    at = 0
    for segment in path.segments:
        n = len(segment)
        keys[:, :, segment.start : segment.end] = key[:, :, at : at + n]
        values[:, :, segment.start : segment.end] = value[:, :, at : at + n]
        first = 0 if sliding_window is None else max(0, segment.start - sliding_window + 1)
        window = sliding_window if sliding_window is not None and segment.end - first > sliding_window else None
        whole = segment.start == 0 and window is None
        part = scaled_dot_product_attention(
            query[:, :, at : at + n],
            keys[:, :, first : segment.end],
            values[:, :, first : segment.end],
            attn_mask=None if whole else path.mask(segment.start - first, n, window, query),
            is_causal=whole,
            scale=scaling,
            enable_gqa=grouped,
        )
        out[:, at : at + n] = part.transpose(1, 2)
        at += n
    return out, None


AttentionInterface.register(NAME, attend)


class PackedReader:
    """Hidden states of a trie's stream.

    Args:
        model: a ``PreTrainedModel``.

    Raises:
        NotImplementedError: a layer of the model is not plain or sliding attention.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        self.config = model.config.get_text_config()
        self.device = next(model.parameters()).device
        others = sorted(set(getattr(self.config, "layer_types", None) or ()) - LAYER_TYPES)
        if others or not getattr(model, "_supports_attention_backend", False):
            raise NotImplementedError(f"layers of type {', '.join(others) or 'unknown'} cannot be read along a path")

    def layout(self, trie: Trie) -> list[Segment]:
        """The segments in the order of the stream."""
        return packed_segments(trie)

    def read(self, trie: Trie, budget: int) -> Iterator[tuple[int, torch.Tensor]]:
        """First place in the stream and last hidden states [n, H], in at most ``budget`` tokens a forward."""
        path = Path(trie.longest)
        at = 0
        for chunk in chunks(self.layout(trie), budget):
            ids = np.concatenate([trie.sequences[s.sequence][s.start : s.end] for s in chunk])
            positions = np.concatenate([np.arange(s.start, s.end) for s in chunk])
            path.enter(chunk)
            with self._along(path):
                hidden = self.decoder(
                    input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(self.device),
                    position_ids=torch.from_numpy(positions)[None].to(self.device),
                    use_cache=False,
                ).last_hidden_state[0]
            yield at, hidden
            at += len(ids)

    @contextmanager
    def _along(self, path: Path) -> Iterator[None]:
        """The model's own attention comes back afterwards, so that the model can be used as before in between."""
        token = _reading.set(path)
        before = self.config._attn_implementation
        self.config._attn_implementation = NAME
        try:
            yield
        finally:
            self.config._attn_implementation = before
            _reading.reset(token)
