"""Teachers that follow a script instead of a model: known truth for the whole path from rollouts to tables.

All of them run through contexts, codec, store, metrics and intervals exactly as a model does.

* ``oracle``: a success has log-prob -0.1 nats a token, a failure -0.5, whatever the context. Every valid metric table
  must say AUC 1.000.
* ``noise``: a fresh normal draw for each (context, target).
* ``context_shift``: one draw for each target, plus a constant for each block that the context shows: a teacher whose
  level moves with what it is shown and which knows nothing of the target.
* ``shuffled_labels``: the oracle with labels permuted within the group.

The last three must come out at chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mopd.rollouts import Group
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.tokens import ByteCodec, Codec

__all__ = ["SCRIPTED", "ScriptedTeacher"]

SCRIPTED = ("oracle", "noise", "context_shift", "shuffled_labels")
RIGHT, WRONG = -0.1, -0.5
STUDENT = {"oracle": -0.3, "shuffled_labels": -0.3, "noise": -1.0, "context_shift": -1.0}
"""Log-prob of every token for the student, in nats: it knows nothing, and lies in the middle of what its teacher says,
so that the sign of a delta is right whatever the length."""


class ScriptedTeacher:
    """A teacher that knows the labels, or nothing.

    Args:
        script: one of ``SCRIPTED``.
        seed: of the draws.
        codec: tokenizer for contexts and responses; bytes by default, so no model is needed.
    """

    window: int | None = None

    def __init__(self, script: str, *, seed: int = 0, codec: Codec | None = None) -> None:
        if script not in SCRIPTED:
            raise ValueError(f"unknown scripted teacher {script!r}; known are {', '.join(SCRIPTED)}")
        self.name = script
        self.seed = seed
        self.codec: Codec = codec or ByteCodec()
        self.tokens_forwarded = 0
        self.cache_hits = 0

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        return [TokenScores(logprob=np.full(len(r.response_ids), self._level(r), dtype=np.float32)) for r in requests]

    def provenance(self) -> Mapping[str, Any]:
        return {"teacher": self.name, "seed": self.seed, "codec": self.codec.hash}

    def _level(self, request: ScoreRequest) -> float:
        group, target = request.group, request.rollout_id
        if request.student:
            return STUDENT[self.name]
        match self.name:
            case "oracle":
                return RIGHT if group.by_id[target].success else WRONG
            case "shuffled_labels":
                return RIGHT if self._shuffled(group)[target] else WRONG
            case "noise":
                shown = hashlib.sha256(request.context_ids.tobytes()).hexdigest()
                return -1 + 0.1 * self._normal("noise", shown, target)
            case _:
                blocks = sum(self._normal("block", group.group_id, p.role, p.rollout_id) for p in request.peers)
                return -1 + 0.1 * self._normal("target", group.group_id, target) + 0.5 * blocks

    def _shuffled(self, group: Group) -> dict[str, bool]:
        judged = sorted((r for r in group.rollouts if r.success is not None), key=lambda r: r.rollout_id)
        order = sorted(judged, key=lambda r: self._digest("shuffle", group.group_id, r.rollout_id))
        return {r.rollout_id: bool(other.success) for r, other in zip(judged, order, strict=True)}

    def _digest(self, *parts: object) -> bytes:
        text = "\x1f".join(map(str, (self.seed, *parts)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _normal(self, *parts: object) -> float:
        """A standard normal draw that belongs to ``parts``: Box-Muller on two words of their hash."""
        digest = self._digest(*parts)
        u, v = ((int.from_bytes(digest[i : i + 8], "big") + 1) / (2**64 + 1) for i in (0, 8))
        return float(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v))
