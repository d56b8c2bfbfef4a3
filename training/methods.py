"""The training methods: one ordered table, and what each asks of a condition and a group.

All spend the same rollouts: ``prompts_per_step`` groups of ``group_size``, verified in the same way. They differ in
what the loss makes of them. ``sdpo`` is ``mopd`` with the context of one success, in our wording and under our budget
rule, so that the two differ in the peers alone; TRL's own wording of SDPO is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mopd.conditions import Condition, condition

__all__ = ["METHODS", "Method", "Objective", "check_condition", "peers_needed"]

Objective = Literal["distil", "policy", "likelihood", "preference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What a method does with a group.

    Attributes:
        name: as asked for on the command line.
        objective: ``distil`` towards the teacher (mixed with the policy gradient by ``distillation_weight``),
            ``policy`` gradient alone, ``likelihood`` of verified successes, or ``preference`` of a success over a
            failure of its group.
        condition: context of the teacher; None where there is no context.
        any_condition: whether ``--condition`` may ask for another one.
        teacher: teacher if none is asked for; None where the method has none.
        label: words for charts and tables.
    """

    name: str
    objective: Objective
    condition: str | None = None
    any_condition: bool = False
    teacher: str | None = None
    label: str = ""


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(name="grpo", objective="policy", label="policy gradient with group-relative advantages"),
        Method(name="sdpo", objective="distil", condition="1s", teacher="ema", label="self-teacher shown one success"),
        Method(
            name="mopd",
            objective="distil",
            condition="2s1f",
            any_condition=True,
            teacher="ema",
            label="self-teacher shown several rollouts of the group",
        ),
        Method(
            name="opd",
            objective="distil",
            condition="question_only",
            teacher="external",
            label="another, frozen teacher model that is shown the question alone",
        ),
        Method(name="rft", objective="likelihood", label="likelihood of verified successes"),
        Method(
            name="dpo",
            objective="preference",
            teacher="frozen",
            label="on-policy preference pairs of a success and a failure of one group",
        ),
    )
}
"""Every method by name, in the order in which tables show them."""


def peers_needed(cond: Condition) -> int:
    """Rollouts that a group must have for the condition to be filled for one target, the target left out.

    A condition that borrows its peers from another prompt needs as many there, where no target is left out.
    """
    if cond.choice == "label" and not cond.fallback:
        return cond.needs_successes + cond.failure_slots
    return cond.slots


def check_condition(name: str, group_size: int, prompts_per_step: int) -> Condition:
    """The condition of that name, if groups of this size can fill it.

    Raises:
        ValueError: it is unknown, or needs more peers than there can be.
    """
    cond = condition(name)
    own = 1 if cond.source == "group" else 0
    need = peers_needed(cond) + own
    if need > group_size:
        raise ValueError(
            f"condition {cond.name} needs {peers_needed(cond)} peers{' besides the target' if own else ''}, but a "
            f"group has {group_size} rollouts: give a group_size of at least {need}, or a condition with fewer peers"
        )
    if cond.source == "other_prompt" and prompts_per_step < 2:
        raise ValueError(
            f"condition {cond.name} borrows peers from another prompt of the same step, but prompts_per_step is "
            f"{prompts_per_step}: give at least 2"
        )
    return cond
