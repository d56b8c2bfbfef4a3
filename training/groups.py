"""From the sampled batch to groups, and from groups to the contexts that the teacher reads.

The peers come by protocol ``self_exclusion`` through ``mopd.planning.Planner``, the code of the study: choice of peers,
wording, chat template and budget are the study's by construction. Every process plans its own groups, which are whole
(``RunConfig.accumulation`` refuses any other division); for peers of another prompt it sees all groups of the step.

Deviation from TRL: its builder keeps the *last* ``max_reprompt_len`` tokens of a context, so that a long one loses its
question first; the study's rule shortens the peers and never the question. A target without a context takes no part in
the distillation, and the reason is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mopd.conditions import Condition
from mopd.controls import Pool
from mopd.generation.base import Completion
from mopd.peers import PROTOCOLS
from mopd.planning import GroupPlan, Planner
from mopd.rollouts import Group, Rollout
from mopd.tasks import TaskItem
from mopd.tokens import Codec
from mopd.verifiers import Verdict
from training.config import RunConfig

__all__ = ["Judged", "Row", "group_rows", "make_groups", "planner_of", "preference_order", "rollout_rows"]

PROTOCOL = "self_exclusion"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A sampled response with its verdict."""

    item: TaskItem
    completion: Completion
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A response in its place: what its teacher reads, or why it has none.

    Attributes:
        rollout_id: of the response.
        context_id: of its context; None without one.
        context_ids: token ids of the context; None without one.
        reason: ``all_failed``, ``lone_success``, ``too_few_peers``, ``context_overflow``, ``unjudged``, ...; None with
            a context.
    """

    rollout_id: str
    context_id: str | None = None
    context_ids: np.ndarray | None = None
    reason: str | None = None


def make_groups(judged: Sequence[Judged], size: int, *, step: int, first: int, threshold: float) -> list[Group]:
    """Groups of consecutive responses.

    Args:
        judged: of this process, group after group.
        size: rollouts of a group.
        step: of training, which enters the ids: groups of different steps are never merged.
        first: place of this process's first group among those of the step.
        threshold: reward from which a response is a success.
    """
    groups = []
    for place in range(len(judged) // size):
        part = judged[place * size : (place + 1) * size]
        group_id = f"{step:06d}-{first + place:04d}-{part[0].item.item_id}"
        rollouts = tuple(_rollout(one, group_id, i, threshold) for i, one in enumerate(part))
        item = part[0].item
        groups.append(Group(group_id=group_id, task=item.task, prompt=item.prompt, rollouts=rollouts))
    return groups


def _rollout(one: Judged, group_id: str, place: int, threshold: float) -> Rollout:
    reward = one.verdict.reward
    return Rollout(
        rollout_id=f"{group_id}/{place:02d}",
        group_id=group_id,
        response=one.completion.text,
        response_ids=one.completion.ids,
        finished=one.completion.finished,
        reward=reward,
        success=None if reward is None else reward >= threshold,
        answer=one.verdict.answer,
        feedback=one.verdict.feedback,
    )


def planner_of(config: RunConfig, codec: Codec, window: int | None) -> Planner | None:
    """The study's planner under the settings of a run; None for a method without a context."""
    cond = config.condition
    if cond is None:
        return None
    return Planner(
        codec=codec,
        conditions=(cond,),
        protocols={PROTOCOL: PROTOCOLS[PROTOCOL]},
        seed=config.teacher.peer_seed,
        templates=config.teacher.wording,
        window=window,
        max_context_tokens=config.teacher.max_context_tokens,
        on_overflow=config.teacher.on_overflow,
        pool=Pool((), config.teacher.peer_seed) if cond.source != "group" else None,
    )


def group_rows(plan: GroupPlan, cond: Condition) -> list[Row]:
    """A group's responses in order, each with its context or the reason why it has none."""
    targets = {t.rollout_id: t for t in plan.targets}
    rows = []
    for rollout in plan.group.rollouts:
        target = targets.get(rollout.rollout_id)
        context_id = None if target is None else target.context_id
        if context_id is None:
            why = target.reason if target is not None else None
            rows.append(Row(rollout_id=rollout.rollout_id, reason=_reason(rollout, why, plan.group, cond)))
        elif plan.responses[rollout.rollout_id].ids != rollout.response_ids:
            # The study would score other tokens than were sampled, such as a control token amid the response.
            rows.append(Row(rollout_id=rollout.rollout_id, reason="changed_response"))
        else:
            ids = plan.contexts[context_id][1].token_ids
            rows.append(Row(rollout_id=rollout.rollout_id, context_id=context_id, context_ids=ids))
    return rows


def _reason(rollout: Rollout, why: str | None, group: Group, cond: Condition) -> str:
    if rollout.success is None:
        return "unjudged"
    if why is None:
        return "empty_response"
    if why != "unfilled":
        return why
    if cond.source == "group" and cond.needs_successes and not group.successes:
        return "all_failed"
    if cond.source == "group" and cond.needs_successes and group.successes == (rollout,):
        return "lone_success"
    return "too_few_peers"


def preference_order(group: Group) -> tuple[list[int], int]:
    """Places of a group's responses with its pairs first (success, failure, success, failure, ...), and how many
    responses are in pairs. Pairs are made in the order of sampling, each response in one at most."""
    places = {r.rollout_id: i for i, r in enumerate(group.rollouts)}
    pairs = [
        places[r.rollout_id] for pair in zip(group.successes, group.failures, strict=False) for r in pair
    ]  # the shorter side decides
    rest = [i for i in range(len(group.rollouts)) if i not in set(pairs)]
    return pairs + rest, len(pairs)


def rollout_rows(
    groups: Sequence[Group], *, step: int, policy: str, sampling: Mapping[str, Any], source: str
) -> list[dict[str, Any]]:
    """Rows of ``rollouts.parquet``."""
    return [
        {
            "group_id": group.group_id,
            "rollout_id": r.rollout_id,
            "task": group.task,
            "prompt": group.prompt if isinstance(group.prompt, str) else [dict(m) for m in group.prompt],
            "response": r.response,
            "response_ids": r.response_ids,
            "finished": r.finished,
            "reward": r.reward,
            "success": r.success,
            "answer": r.answer,
            "feedback": r.feedback,
            "policy": policy,
            "step": step,
            "sampling": dict(sampling),
            "source": source,
        }
        for group in groups
        for r in group.rollouts
    ]
