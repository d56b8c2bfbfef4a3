"""The output head on chosen hidden states, a few rows of logits at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mopd.teachers.plan import Readout

__all__ = ["Hidden", "OutputHead", "Predictions", "divergences", "token_scores"]

HEAD_ROWS = 256
CACHE_BYTES = 2**20


def token_scores(
    logits: torch.Tensor, row: torch.Tensor, target: torch.Tensor, top_k: int
) -> Mapping[str, torch.Tensor]:
    """Log-probs of targets, their ranks, and entropies from logits.

    Args:
        logits: [R, V] float32; overwritten.
        row: [M] which row each target is read off.
        target: [M] token ids.
        top_k: how many of the likeliest tokens to keep.

    Returns:
        ``logprob`` and ``entropy`` [M] in nats, ``rank`` [M] (1 for the likeliest), and with ``top_k`` also
        ``top_ids`` and ``top_logprob`` [M, K].
    """
    wanted, top = logits[row, target], logits.topk(top_k, dim=-1) if top_k else None
    rank = _ranks(logits, row, wanted)
    normaliser, entropy = (torch.cat(parts) for parts in zip(*map(_statistics, _blocks(logits)), strict=True))
    found = {"logprob": wanted - normaliser[row], "entropy": entropy[row], "rank": rank}
    if top is not None:
        found["top_ids"] = top.indices.to(torch.int32)[row]
        found["top_logprob"] = (top.values - normaliser[:, None])[row]
    return found


def _ranks(logits: torch.Tensor, row: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[M] int32: 1 and how many logits of its row are above each of ``wanted`` [M]."""
    size = len(row) if logits.is_cuda else _cached_rows(logits)
    pieces = zip(row.split(size), wanted.split(size), strict=True)
    return 1 + torch.cat([(logits[r] > w[:, None]).sum(-1, dtype=torch.int32) for r, w in pieces])


def _cached_rows(logits: torch.Tensor) -> int:
    """Rows that stay in a CPU's cache through several passes."""
    return max(1, CACHE_BYTES // (4 * logits.shape[1]))


def _blocks(logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows that stay in a CPU's cache through several passes; on a GPU all of them."""
    return [logits] if logits.is_cuda else logits.split(_cached_rows(logits))


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``log sum exp`` and entropy [R] of logits [R, V], which are overwritten."""
    highest = logits.amax(-1, keepdim=True)
    # H = log Z - sum e^x x / Z with x = logit - highest; a token of probability 0 adds 0, not 0 * -inf
    x = logits.sub_(highest).clamp_min_(torch.finfo(logits.dtype).min)
    weight = x.exp()
    total = weight.sum(-1)
    return highest[:, 0] + total.log(), total.log() - torch.linalg.vecdot(weight, x) / total


def divergences(logits_p: torch.Tensor, logits_q: torch.Tensor, top_k: int | None = None) -> Mapping[str, torch.Tensor]:
    """Divergences of two distributions over the same vocabulary.

    With ``top_k`` both are brought to K + 1 events: the K likeliest tokens of P, and all others as one. That lowers
    every divergence or leaves it as it is (data processing inequality).

    Args:
        logits_p: [R, V] float32.
        logits_q: [R, V] float32.
        top_k: how many tokens are told apart; None for all.

    Returns:
        ``forward`` KL(P‖Q), ``reverse`` KL(Q‖P) and ``jensen_shannon``, each [R] in nats.
    """
    p, q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    if top_k is not None and top_k < p.shape[-1]:
        likeliest = p.topk(top_k, dim=-1).indices
        p, q = _coarse(p, likeliest), _coarse(q, likeliest)
    middle = torch.logaddexp(p, q) - math.log(2)
    return {
        "forward": _kl(p, q),
        "reverse": _kl(q, p),
        "jensen_shannon": (_kl(p, middle) + _kl(q, middle)) / 2,
    }


def _coarse(log_p: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[R, K + 1]: log-probs of the kept tokens [R, K], and of all others together."""
    others = log_p.scatter(-1, kept, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, kept), others], dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """[R] from log-probs; an event of probability 0 under P adds 0, one of probability 0 under Q alone makes it inf."""
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1).clamp_min(0.0)  # rounding can go below 0


class OutputHead:
    """Hidden states to log-probs, with the scaling that some families put after the head.

    Args:
        model: a ``PreTrainedModel`` with a language-model head.
        top_k: how many of the likeliest tokens to keep at each place.
    """

    def __init__(self, model: Any, *, top_k: int = 0) -> None:
        self.project = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.top_k = top_k
        self._scale = getattr(config, "logit_scale", None)  # Cohere
        self._divide = getattr(config, "logits_scaling", None)  # Granite
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] in float32 from last hidden states [R, H]."""
        logits = self.project(hidden).float()
        if self._scale is not None:
            logits = logits * self._scale
        if self._divide is not None:
            logits = logits / self._divide
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits


class Predictions:
    """Collects what a readout asks for while hidden states come by in the order of the stream.

    Args:
        head: gives the logits.
        readout: which places of the stream predict which tokens.
    """

    def __init__(self, head: OutputHead, readout: Readout) -> None:
        self.head = head
        self.readout = readout
        self._parts: list[dict[str, np.ndarray]] = []

    def take(self, first: int, hidden: torch.Tensor) -> None:
        """Read predictions off hidden states [n, H], those of the places ``first`` to ``first + n`` of the stream."""
        low, high = np.searchsorted(self.readout.row, [first, first + len(hidden)])
        row = self.readout.row[low:high] - first
        places, which = np.unique(row, return_inverse=True)
        target = torch.from_numpy(self.readout.target[low:high]).to(hidden.device)
        for start in range(0, len(places), HEAD_ROWS):
            part = places[start : start + HEAD_ROWS]
            a, b = np.searchsorted(which, [start, start + len(part)])
            logits = self.head.logits(hidden[torch.from_numpy(part).to(hidden.device)])
            rows = torch.from_numpy(which[a:b] - start).to(hidden.device)
            scores = token_scores(logits, rows, target[a:b], self.head.top_k)
            self._parts.append({name: values.cpu().numpy() for name, values in scores.items()})

    def results(self) -> dict[str, np.ndarray]:
        """Arrays [M, ...] by name, one entry a response token, distinct responses one after the other."""
        found = {}
        for name in self._parts[0]:
            values = np.concatenate([part[name] for part in self._parts])
            found[name] = np.empty_like(values)
            found[name][self.readout.order] = values
        return found


class Hidden:
    """Collects the hidden states behind a readout's predictions, each place once.

    Args:
        readout: which places of the stream predict.
    """

    def __init__(self, readout: Readout) -> None:
        self.places, which = np.unique(readout.row, return_inverse=True)
        self._row = np.empty_like(which)
        self._row[readout.order] = which
        self._parts: list[torch.Tensor] = []

    def take(self, first: int, hidden: torch.Tensor) -> None:
        """Keep what is needed of hidden states [n, H] of the places ``first`` to ``first + n`` of the stream."""
        low, high = np.searchsorted(self.places, [first, first + len(hidden)])
        if high > low:
            self._parts.append(hidden[torch.from_numpy(self.places[low:high] - first).to(hidden.device)])

    def results(self) -> tuple[torch.Tensor, np.ndarray]:
        """States [P, H] of the distinct places, and [M] the state behind every response token, distinct responses one
        after the other."""
        return torch.cat(self._parts), self._row
