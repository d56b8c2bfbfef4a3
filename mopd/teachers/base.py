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

__all__ = ["ScoreRequest", "Teacher", "TokenScores"]


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
        top_ids: [T, K] int32, the K likeliest tokens, the likeliest first; None unless they were asked for.
        top_logprob: [T, K] float32, their log-probs in nats.
    """

    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprob: NDArray[np.float32] | None = None


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
