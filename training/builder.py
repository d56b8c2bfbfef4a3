"""TRL's builder of teacher contexts, the seam ``teacher_context_builder`` that it offers: ours are the study's.

It is called once a step, when the responses are judged: it makes the groups and their contexts, replaces TRL's
advantages, and says who takes part in the objective and what the sums of the step are divided by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import pad

from mopd.controls import Pool
from mopd.planning import ContextOverflow, GroupPlan, Planner
from mopd.rollouts import Group
from training import losses, objective
from training.batch import Batch
from training.config import TrainingError
from training.groups import Row, group_rows, make_groups, preference_order
from training.methods import Objective

if TYPE_CHECKING:
    from training.trainer import PeerTrainer

__all__ = ["ContextBuilder", "voices"]


class ContextBuilder:
    """Makes the batch of a step.

    Args:
        trainer: whose rollouts they are; it is given the batch.
        planner: of contexts; None for a method without.
    """

    def __init__(self, trainer: PeerTrainer, planner: Planner | None) -> None:
        self.trainer, self.planner = trainer, planner
        self.last_metrics: dict[str, float] = {}  # what TRL reads of a builder

    def build(
        self, output: dict[str, Any], prompts: list[Any], rewards: Tensor, feedbacks: list[Any] | None = None
    ) -> dict[str, Tensor]:
        """Groups of the step, contexts of this process's targets, advantages and the step's denominators."""
        trainer, config = self.trainer, self.trainer.run
        size, rank = config.rollouts.group_size, trainer.accelerator.process_index
        groups = make_groups(
            trainer.judged,
            size,
            step=trainer.state.global_step,
            first=rank * (len(trainer.judged) // size),
            threshold=config.data.success_threshold,
        )
        everyone = gather_object(groups)
        known = [float("nan") if r.reward is None else r.reward for group in everyone for r in group.rollouts]
        mine = slice(rank * len(rewards), (rank + 1) * len(rewards))
        scaled = losses.advantages(torch.tensor(known), size, config.loss.advantage)
        output["advantages"] = scaled[mine].to(output["completion_ids"].device)
        rows, plans = self._contexts(groups, everyone)
        order, say = voices(config.recipe.objective, groups, rows)
        _reorder(output, order)
        return self._teacher_inputs(output, groups, rows, plans, order, say, flat=not scaled.any().item())

    def _contexts(self, groups: Sequence[Group], everyone: Sequence[Group]) -> tuple[list[Row], list[GroupPlan]]:
        """A row for each response, with its context where the method has one."""
        cond = self.trainer.run.condition
        if self.planner is None or cond is None:
            return [Row(rollout_id=r.rollout_id) for group in groups for r in group.rollouts], []
        planner = self.planner
        if planner.pool is not None:
            planner = replace(planner, pool=Pool(everyone, planner.seed))
        try:
            plans = [planner.serve(group) for group in groups]
        except ContextOverflow as error:
            raise TrainingError(
                f"{error.__cause__}, and on_overflow is 'error': go on with --resume and --on-overflow shorten; or "
                "begin anew, under another --output, with a larger max_context_tokens"
            ) from error
        return [row for plan in plans for row in group_rows(plan, cond)], plans

    def _teacher_inputs(
        self,
        output: dict[str, Any],
        groups: list[Group],
        rows: list[Row],
        plans: list[GroupPlan],
        order: list[int],
        say: list[float],
        *,
        flat: bool,
    ) -> dict[str, Tensor]:
        trainer, device = self.trainer, output["completion_ids"].device
        ids, mask = output["completion_ids"], output["completion_mask"]
        bare = zip(output["prompt_ids"], output["prompt_mask"].bool(), strict=True)
        contexts = [
            prompt[kept] if rows[i].context_ids is None else torch.as_tensor(rows[i].context_ids, device=device).long()
            for i, (prompt, kept) in zip(order, bare, strict=True)
        ]
        pad_id: Any = trainer._tokenizer.pad_token_id
        filled = pad(contexts, padding_value=pad_id, padding_side="left")
        seen = pad([torch.ones_like(c) for c in contexts], padding_value=0, padding_side="left")
        output["row"] = torch.arange(len(order), device=device)
        weight = torch.tensor(say, device=device)
        responses = [r for group in groups for r in group.rollouts]
        judged = torch.tensor([float(responses[i].success is not None) for i in order], device=device)
        voiced, known = self._total(mask, weight), self._total(mask, judged)
        trainer.batch = Batch(
            step=trainer.state.global_step,
            groups=groups,
            rows=rows,
            plans=plans,
            order=order,
            shares=losses.step_shares(*voiced),
            policy_shares=losses.step_shares(*known),
            idle=objective.idle(trainer.run, sequences=float(voiced[1]), flat=flat),
        )
        return {
            "teacher_input_ids": torch.cat([filled, ids], dim=1),
            "teacher_attention_mask": torch.cat([seen, mask], dim=1),
            "self_distillation_mask": weight,
        }

    def _total(self, mask: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and sequences with a say, over all processes."""
        mine = torch.stack([(mask.sum(1) * weight).sum(), weight.sum()]).double()
        total: Any = self.trainer.accelerator.reduce(mine, reduction="sum")
        return total[0], total[1]


def voices(objective: Objective, groups: Sequence[Group], rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """The order in which a process's responses are trained on, and who of them has a say in the objective (1, else 0),
    in that order."""
    responses = [r for group in groups for r in group.rollouts]
    order = list(range(len(responses)))
    match objective:
        case "policy":
            return order, [float(r.success is not None) for r in responses]
        case "likelihood":
            return order, [float(r.success is True) for r in responses]
        case "distil":
            return order, [float(row.context_id is not None) for row in rows]
        case "preference":
            order, say = [], []
            for group in groups:
                first = len(order)
                places, paired = preference_order(group)
                order += [first + i for i in places]
                say += [float(i < paired) for i in range(len(places))]
            return order, say


def _reorder(output: dict[str, Any], order: list[int]) -> None:
    if order != list(range(len(order))):
        for name, value in output.items():
            if isinstance(value, Tensor) and value.ndim:
                output[name] = value[torch.tensor(order, device=value.device)]
