"""The seam between a study and whatever gives log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mopd.peers import Peer
from mopd.rollouts import Group
from mopd.tokens import Codec

__all__ = ["Description", "DivergenceRequest", "ScoreRequest", "Teacher", "TokenDivergences", "TokenScores"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoreRequest:
    """Log-probabilities wanted: of ``response_ids`` after ``context_ids``.

    Attributes:
        group: the group of the target.
        rollout_id: the target.
        peers: what the context shows (empty for the student's own prompt).
        context_ids: [S] int32, assistant header included.
        response_ids: [T] int32, end token included if the response ended by itself.
        student: whether this asks for the student's own log-probs. A self-teacher answers both alike.
    """

    group: Group
    rollout_id: str
    peers: tuple[Peer, ...]
    context_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    student: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenScores:
    """Scores of one response.

    Attributes:
        logprob: [T] float32, ``log π(y_t | context, y_<t)`` in nats.
        entropy: [T] float32, entropy of the same distribution in nats; None if the teacher has no distribution.
        rank: [T] int32, 1 and how many tokens are likelier in the same distribution; None if it has none.
        top_ids: [T, K] int32, the K likeliest tokens, the likeliest first; None unless they were asked for.
        top_logprob: [T, K] float32, their log-probs in nats.
    """

    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None
    rank: NDArray[np.int32] | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprob: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DivergenceRequest:
    """Two contexts of one response, whose next-token distributions are to be compared.

    Attributes:
        context_ids: [S] int32, of P: what the teacher sees.
        reference_ids: [R] int32, of Q: the student's own prompt, as a rule.
        response_ids: [T] int32, the response that follows either.
    """

    context_ids: NDArray[np.int32]
    reference_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenDivergences:
    """Divergences of P (under the context) and Q (under the reference) at each token of a response.

    Attributes:
        forward: [T] float32, ``KL(P‖Q) = Σ P log(P/Q)`` in nats.
        reverse: [T] float32, ``KL(Q‖P)`` in nats.
        jensen_shannon: [T] float32, ``½ KL(P‖M) + ½ KL(Q‖M)`` with ``M = ½ (P + Q)``, from 0 to ln 2 nats.
    """

    forward: NDArray[np.float32]
    reverse: NDArray[np.float32]
    jensen_shannon: NDArray[np.float32]


class Teacher(Protocol):
    """Anything that scores responses under contexts."""

    @property
    def name(self) -> str: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def window(self) -> int | None:
        """Most tokens of context and response together; None for no limit."""
        ...

    @property
    def tokens_forwarded(self) -> int:
        """Tokens that went through the model so far, padding not counted."""
        ...

    @property
    def cache_hits(self) -> int:
        """Requests answered so far from scores of an earlier study (``mopd.teachers.cache``)."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        """Scores in the order of the requests. Equal (context, response) ids are forwarded once."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What identifies the teacher in ``study.json``: equal provenance means equal scores."""
        ...


@dataclass(frozen=True, kw_only=True)
class Description:
    """A teacher that works in another process: who it is and how it reads, without its weights.

    Attributes:
        name: how tables name it.
        codec: its tokenizer.
        window: most tokens of context and response together; None for no limit.
        identity: its provenance, but for what only the loaded model knows.
    """

    name: str
    codec: Codec
    window: int | None
    identity: Mapping[str, Any]
    tokens_forwarded: int = 0
    cache_hits: int = 0

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        raise TypeError(f"{self.name!r} is only described here: load the teacher to score with it")

    def provenance(self) -> Mapping[str, Any]:
        return self.identity
