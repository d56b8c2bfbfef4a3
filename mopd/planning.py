"""What a study will score, decided before any score is read.

For every group: which targets are compared (units), which context each is read under, and which of them every
compared condition can serve (*common support*). Nothing here looks at a score, so nothing that a teacher says can
change who takes part.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from mopd.conditions import Condition
from mopd.contexts import Templates
from mopd.controls import Pool, assign, shown_texts
from mopd.peers import CONFOUNDED, PROTOCOLS, Assignment, Peer, Protocol
from mopd.rollouts import Group
from mopd.store import SCHEMAS
from mopd.tokens import Codec, FittedContext, Refusal, ResponseIds, fit_context, response_ids

__all__ = ["ContextOverflow", "GroupPlan", "Planner", "Target", "assignment_frame"]


class ContextOverflow(ValueError):
    """A context is over its budget where ``on_overflow`` is ``error``; its cause says which, and by how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A rollout in its place: one row of ``assignments.parquet``.

    ``reason`` says why it takes no part: no context under this condition (``unfilled``, ``context_overflow``, or what
    is wrong with its response), no context under another one (``undefined_elsewhere``), or a unit that is left with
    successes or failures only (``one_class``).
    """

    protocol: str
    condition: str
    unit_id: str
    rollout_id: str
    context_id: str | None
    reason: str | None
    supported: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPlan:
    """All that is needed to score one group.

    Attributes:
        group: the group.
        targets: every (protocol, condition, unit, rollout), supported or not.
        contexts: by context id, those that a supported target is read under.
        responses: by rollout id, the ids to score.
        student_ids: the student's own prompt.
        dropped: counts by reason, of rollouts (``unjudged``, ``empty_response``, ...) and of this group
            (``group_all_failure``, ...).
    """

    group: Group
    targets: tuple[Target, ...]
    contexts: Mapping[str, tuple[str, FittedContext]]
    responses: Mapping[str, ResponseIds]
    student_ids: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def supported(self) -> bool:
        """Whether anything in this group can be compared under any protocol."""
        return any(t.supported for t in self.targets)

    @property
    def counts(self) -> bool:
        """Whether the group can be compared under a fair protocol (under any, if only confounded ones are asked).

        What a confounded protocol can serve must not decide which groups a limited study takes.
        """
        asked = {t.protocol for t in self.targets}
        fair = asked - CONFOUNDED or asked
        return any(t.supported and t.protocol in fair for t in self.targets)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans groups one by one.

    Attributes:
        codec: tokenizer of the teacher.
        conditions: those to be compared; support is common to all of them.
        protocols: by name.
        seed: of the order of peers.
        templates: wording of the contexts.
        window: most tokens of context and response together; None for no limit.
        max_context_tokens: a tighter limit on the context alone.
        on_overflow: ``shorten`` the peers, or ``error``.
        match: controls have as many ``blocks`` as the condition that they are matched to; with ``tokens``, the peers'
            words are also cut to a common length over that condition and its controls, unit by unit.
        pool: groups that lend peers to ``other_prompt``.
    """

    codec: Codec
    conditions: Sequence[Condition]
    protocols: Mapping[str, Protocol] = field(default_factory=lambda: {"leave_pair_out": PROTOCOLS["leave_pair_out"]})
    seed: int = 0
    templates: Templates = field(default_factory=Templates)
    window: int | None = None
    max_context_tokens: int | None = None
    on_overflow: Literal["shorten", "error"] = "shorten"
    match: Literal["blocks", "tokens"] = "blocks"
    pool: Pool | None = None

    def plan(self, group: Group) -> GroupPlan:
        """Plan one group: of its contexts, those that a compared target is read under.

        Raises:
            ValueError: the prompts cannot be rendered (no chat template, no user message at the end).
            ContextOverflow: a context is over its budget and ``on_overflow`` is ``error``.
        """
        plan = self.serve(group)
        used = {t.context_id for t in plan.targets if t.supported}
        return dataclasses.replace(plan, contexts={key: plan.contexts[key] for key in plan.contexts if key in used})

    def serve(self, group: Group) -> GroupPlan:
        """As ``plan``, with the contexts of all targets, compared or not: training teaches every target that has one.

        Raises:
            ValueError: as ``plan``.
        """
        dropped = self._drops(group)
        student_ids = np.asarray(self.codec.encode_prompt(group.prompt), dtype=np.int32)
        responses, refused = self._responses(group, len(student_ids))
        dropped.update(refused.values())
        fit = _Fitter(self, group, self._budget(responses))
        contexts: dict[str, tuple[str, FittedContext]] = {}
        targets = [
            self._target(name, cond, assignment, rollout_id, context, refused, contexts)
            for name, protocol in self.protocols.items()
            for cond, assignment, context in self._fitted(protocol, group, fit)
            for rollout_id in assignment.targets
        ]
        return GroupPlan(
            group=group,
            targets=self._mark_support(group, targets),
            contexts=contexts,
            responses=responses,
            student_ids=student_ids,
            dropped=dropped,
        )

    def _fitted(
        self, protocol: Protocol, group: Group, fit: _Fitter
    ) -> Iterator[tuple[Condition, Assignment, FittedContext | Refusal | None]]:
        """Every assignment of a protocol under every condition, with its context."""
        assigned = {c.name: list(assign(protocol, group, c, self.seed, self.pool)) for c in self.conditions}
        limits = self._matched(fit, assigned)
        for cond in self.conditions:
            for assignment in assigned[cond.name]:
                limit = limits.get((cond.control_of or cond.name, assignment.targets))
                yield cond, assignment, fit(cond, assignment.peers, limit)

    def _target(
        self,
        protocol: str,
        cond: Condition,
        assignment: Assignment,
        rollout_id: str,
        context: FittedContext | Refusal | None,
        refused: Mapping[str, str],
        contexts: dict[str, tuple[str, FittedContext]],
    ) -> Target:
        """A target in its place; a context that it can be read under is put into ``contexts``."""
        context_id, reason = None, refused.get(rollout_id)
        if reason is None:
            if isinstance(context, FittedContext):
                context_id = f"{protocol}-{context.context_id}"
                contexts[context_id] = (protocol, context)
            else:
                reason = "unfilled" if context is None else context.reason
        return Target(
            protocol=protocol,
            condition=cond.name,
            unit_id=assignment.unit_id,
            rollout_id=rollout_id,
            context_id=context_id,
            reason=reason,
        )

    def _drops(self, group: Group) -> Counter[str]:
        drops: Counter[str] = Counter()
        drops["unjudged"] = sum(r.success is None for r in group.rollouts)
        if len(group.rollouts) < 2:
            drops["group_of_one"] = 1
        elif group.successes and not group.failures:
            drops["group_all_success"] = 1
        elif group.failures and not group.successes:
            drops["group_all_failure"] = 1
        elif not group.successes:
            drops["group_unjudged"] = 1
        return +drops

    def _responses(self, group: Group, prompt_tokens: int) -> tuple[dict[str, ResponseIds], dict[str, str]]:
        found: dict[str, ResponseIds] = {}
        refused: dict[str, str] = {}
        for rollout in group.rollouts:
            if rollout.success is None:
                continue
            try:
                ids = response_ids(rollout, self.codec)
            except Refusal as refusal:
                refused[rollout.rollout_id] = refusal.reason
                continue
            if self.window is not None and prompt_tokens + len(ids.ids) > self.window:
                refused[rollout.rollout_id] = "response_overflow"
                continue
            found[rollout.rollout_id] = ids
        return found, refused

    def _budget(self, responses: Mapping[str, ResponseIds]) -> int | None:
        """Most context tokens of this group: the same for all conditions, so that length decides no comparison."""
        limits = [] if self.max_context_tokens is None else [self.max_context_tokens]
        if self.window is not None:
            limits.append(self.window - max((len(r.ids) for r in responses.values()), default=0))
        return min(limits, default=None)

    def _matched(
        self, fit: _Fitter, assigned: Mapping[str, Sequence[Assignment]]
    ) -> dict[tuple[str, tuple[str, ...]], int]:
        """With ``match="tokens"``: by (matched condition, targets), the fewest tokens of peers' words that it or one
        of its controls shows them."""
        limits: dict[tuple[str, tuple[str, ...]], int] = {}
        if self.match == "blocks":
            return limits
        matched = {c.control_of for c in self.conditions if c.control_of}
        for cond in self.conditions:
            base = cond.control_of or cond.name
            for assignment in assigned[cond.name] if base in matched else ():
                context = fit(cond, assignment.peers, None)
                if isinstance(context, FittedContext):
                    key = (base, assignment.targets)
                    limits[key] = min(context.peer_tokens, limits.get(key, context.peer_tokens))
        return limits

    def _mark_support(self, group: Group, targets: Iterable[Target]) -> tuple[Target, ...]:
        """Support: served by every condition, and in a unit that keeps both a success and a failure."""
        targets = tuple(targets)
        served = Counter((t.protocol, t.unit_id, t.rollout_id) for t in targets if t.context_id is not None)
        common = {key for key, n in served.items() if n == len(self.conditions)}
        classes: dict[tuple[str, str], set[bool | None]] = {}
        for protocol, unit_id, rollout_id in common:
            classes.setdefault((protocol, unit_id), set()).add(group.by_id[rollout_id].success)
        both = {unit for unit, labels in classes.items() if {True, False} <= labels}
        return tuple(
            dataclasses.replace(t, supported=True)
            if (t.protocol, t.unit_id) in both and (t.protocol, t.unit_id, t.rollout_id) in common
            else dataclasses.replace(t, reason=t.reason or self._why_not(t, common))
            for t in targets
        )

    @staticmethod
    def _why_not(target: Target, common: set[tuple[str, str, str]]) -> str:
        """Why a target that has a context here takes no part."""
        served = (target.protocol, target.unit_id, target.rollout_id) in common
        return "one_class" if served else "undefined_elsewhere"


class _Fitter:
    """Contexts of one group, each fitted once."""

    def __init__(self, planner: Planner, group: Group, budget: int | None) -> None:
        self.planner, self.group, self.budget = planner, group, budget
        lent = planner.pool.rollouts if planner.pool is not None else {}
        self.rollouts = ChainMap(dict(group.by_id), lent)
        self.fitted: dict[Any, FittedContext | Refusal] = {}

    def __call__(
        self, cond: Condition, peers: tuple[Peer, ...] | None, max_peer_tokens: int | None
    ) -> FittedContext | Refusal | None:
        """The context, or why it cannot be; None without peers."""
        if peers is None:
            return None
        key = (cond.name, peers, max_peer_tokens)
        if key not in self.fitted:
            self.fitted[key] = self._fit(cond, peers, max_peer_tokens)
        return self.fitted[key]

    def _fit(self, cond: Condition, peers: tuple[Peer, ...], max_peer_tokens: int | None) -> FittedContext | Refusal:
        planner = self.planner
        try:
            return fit_context(
                planner.codec,
                self.group,
                cond,
                peers,
                templates=planner.templates,
                max_tokens=self.budget if cond.shell else None,  # the student's prompt is never cut
                texts=shown_texts(cond, peers, self.rollouts, planner.seed),
                max_peer_tokens=max_peer_tokens,
                on_overflow=planner.on_overflow,
            )
        except Refusal as refusal:
            if planner.on_overflow == "error":
                mend = "give a larger --max-context-tokens, or --on-overflow shorten"
                raise ContextOverflow(f"{refusal}; {mend}") from refusal
            return refusal


def assignment_frame(plans: Iterable[GroupPlan]) -> pl.DataFrame:
    """All targets of all plans as ``assignments.parquet``."""
    rows = [
        (
            plan.group.task,
            t.protocol,
            t.condition,
            plan.group.group_id,
            t.unit_id,
            t.rollout_id,
            plan.group.by_id[t.rollout_id].success,
            t.context_id,
            t.reason,
            t.supported,
        )
        for plan in plans
        for t in plan.targets
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["assignments"], orient="row")
