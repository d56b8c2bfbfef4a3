"""A step's rollouts on one process, from their sampling to the evidence, and the micro-batches they fall into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mopd.planning import GroupPlan
from mopd.rollouts import Group
from training.evidence import Scored, StepRecord
from training.groups import Row
from training.losses import Shares

__all__ = ["Batch", "trimmed"]


@dataclass(kw_only=True)
class Batch:
    """What the micro-batches of a step have in common, and what they leave.

    Attributes:
        step: of training.
        groups: of this process.
        rows: of its responses in the order of sampling, each with its context.
        plans: of its groups; empty for a method without a context.
        order: for each response in the order of training its place in ``rows``.
        shares: of the responses that have a say in the objective.
        policy_shares: of the judged responses, which have one in the policy gradient.
        idle: whether no response of any process has a gradient: none has a say, all advantages are 0.
        recorded: whether the evidence has it.
        scored: token scores so far.
    """

    step: int
    groups: list[Group]
    rows: list[Row]
    plans: list[GroupPlan]
    order: list[int]
    shares: Shares
    policy_shares: Shares
    idle: bool = False
    recorded: bool = False
    scored: list[Scored] = field(default_factory=list)

    def record(self, events: Mapping[str, int]) -> StepRecord:
        """This process's part of what the evidence takes, with what was counted meanwhile."""
        return StepRecord(
            groups=self.groups,
            rows=self.rows if self.plans else (),
            plans=self.plans,
            scored=self.scored,
            events=dict(events),
        )


def trimmed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch without the columns that are padding in each of its rows.

    TRL pads prompts and contexts (on the left) and responses (on the right) to the longest of all that the process
    sampled. The forwards count positions in tokens, so that padding changes nothing but rounding, and time.

    Args:
        inputs: ``prompt_ids`` and ``prompt_mask`` [B, S], ``completion_ids`` and ``completion_mask`` [B, T], perhaps
            ``old_per_token_logps`` [B, T], and ``teacher_input_ids`` and ``teacher_attention_mask`` [B, R + T]. What
            else there is stays as it is.

    Returns:
        The same with the smallest S, T and R that these rows need; all T where no row has a token.
    """
    found = dict(inputs)
    filled = found["completion_mask"].shape[1]
    length = filled - _empty(found["completion_mask"].flip(1))
    for name in ("completion_ids", "completion_mask", "old_per_token_logps"):
        if name in found:
            found[name] = found[name][:, :length]
    for ids, mask, end in (
        ("prompt_ids", "prompt_mask", None),
        ("teacher_input_ids", "teacher_attention_mask", length - filled or None),
    ):
        if ids in found:
            columns = slice(_empty(found[mask]), end)
            found[ids], found[mask] = found[ids][:, columns], found[mask][:, columns]
    return found


def _empty(mask: Tensor) -> int:
    """Leading columns [B, T] in which no row has a token; 0 if there is none at all."""
    return int(mask.bool().any(0).int().argmax())
