"""A step's rollouts on one process, from their sampling to the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mopd.planning import GroupPlan
from mopd.rollouts import Group
from training.evidence import Scored, StepRecord
from training.groups import Row
from training.losses import Shares

__all__ = ["Batch"]


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
        policy_shares: of all responses, which have one in the policy gradient.
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
