"""The trainer: TRL's SDPO trainer with our contexts, our means and our evidence.

What is TRL's: sampling (transformers or vLLM), gathering, the teacher's forward, EMA, PEFT, accelerate, checkpoints.
What is overridden, and why:

* the teacher's context (``teacher_context_builder``, the seam that TRL offers): ``training.groups``;
* tokenising of prompts: the study's codec, which never cuts (too long a prompt is refused before the first step);
* means of the losses and advantages: ``training.losses`` says how they deviate;
* positions: the forward is given ``position_ids`` that count tokens, so that left padding is nothing to a model whose
  positions are not relative;
* the data order, written out beforehand (``training.data.training_order``);
* evaluation: mean@k and pass@k of responses to held-out prompts, instead of a loss;
* checkpoints: ``training.checkpoints``;
* out of memory: on one process the optimiser step is dropped and counted.
"""

# transformers' Trainer declares its model optional, its arguments as those of the base class and a tokenizer's ids as
# anything: what TRL and this module set is not known to a type checker.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object, is_peft_model, set_seed
from datasets import Dataset
from torch import Tensor
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path, pad

from mopd import models
from mopd.controls import Pool
from mopd.generation.base import complete
from mopd.rollouts import Message
from mopd.store import write_json
from mopd.tasks import TaskItem
from mopd.teachers.memory import out_of_memory, release
from mopd.tokens import HFCodec
from training import checkpoints, heldout, losses
from training.config import RunConfig, TrainingError
from training.data import Prompts, training_order
from training.evidence import Evidence, Scored, StepRecord
from training.groups import Judged, Row, group_rows, make_groups, planner_of, preference_order
from training.losses import Shares
from training.rewards import Judge
from training.teachers import AdapterAverage, load_average, save_average

__all__ = ["PeerTrainer"]

DROPPED_STEPS = 3
"""Steps in a row that may be dropped for want of memory."""


@dataclass
class Batch:
    """A step's rollouts on this process, while its micro-batches are worked off."""

    step: int
    groups: list[Any]
    rows: list[Row]
    plans: list[Any]
    order: list[int]
    shares: Shares
    policy_shares: Shares
    recorded: bool = False
    scored: list[Scored] = field(default_factory=list)


class PeerTrainer(SDPOTrainer):
    """Trains a student by any method of ``training.methods``.

    Args:
        config: of the run.
        arguments: the same for TRL (``training.run.trl_arguments``).
        student: folder or hub id of the model.
        codec: its tokenizer.
        teacher_codec: the tokenizer of the contexts: the student's, or an external teacher's.
        prompts: to train on and to evaluate on.
        judge: gives rewards.
        evidence: takes what a step has to say.
        callbacks: of transformers.
        peft_config: adapters, or None.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "mopd"]
    _name = "MOPD"
    # what TRL narrows and does not say
    args: Any
    model: Any
    eos_token_ids: Any

    def __init__(
        self,
        config: RunConfig,
        *,
        arguments: SDPOConfig,
        student: str,
        codec: HFCodec,
        teacher_codec: HFCodec,
        prompts: Prompts,
        judge: Judge,
        evidence: Evidence,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
    ) -> None:
        self.run, self.codec, self.prompts, self.judge, self.evidence = config, codec, prompts, judge, evidence
        self.judged: list[Judged] = []
        self.batch: Batch | None = None
        self.dropped_steps, self.dropping = 0, False
        generations = -(-config.optimizer.steps // config.optimizer.updates_per_batch)
        order = training_order(
            len(prompts.train), generations * config.rollouts.prompts_per_step, config.data.data_seed
        )
        super().__init__(
            model=student,
            reward_funcs=self._judge_batch,
            args=arguments,
            train_dataset=_dataset(prompts.train).select(order),
            eval_dataset=_dataset(prompts.held_out),
            processing_class=codec.tokenizer,
            callbacks=list(callbacks),
            peft_config=peft_config,
        )
        reader = self.teacher_model if config.teacher_kind == "external" else self.model
        settings = self.accelerator.unwrap_model(reader).config.get_text_config()
        window = getattr(settings, "max_position_embeddings", None)
        self.planner = planner_of(config, teacher_codec, window)
        self.teacher_context_builder: Any = self
        self.last_metrics: dict[str, float] = {}  # what TRL reads of a builder
        set_seed(arguments.seed, device_specific=True)  # or two processes would draw alike

    # Rollouts and rewards

    def _tokenize_prompts_untruncated(self, prompts: list[Any]) -> list[list[int]]:
        return [self.codec.encode_prompt(p if isinstance(p, str) else _messages(p)) for p in prompts]

    def _judge_batch(self, completion_ids: list[list[int]], place: list[int], **_: Any) -> list[float | None]:
        """The reward function that TRL calls: keeps the verdicts, of which TRL takes the numbers alone."""
        self.judged = self.judge_all([self.prompts.train[i] for i in place], completion_ids)
        return [one.verdict.reward for one in self.judged]

    def judge_all(self, items: Sequence[TaskItem], completion_ids: Sequence[Sequence[int]]) -> list[Judged]:
        """Responses as text with their verdicts, in order."""
        ends = frozenset(self.eos_token_ids)
        completions = [complete(ids, ends, self.codec) for ids in completion_ids]
        verdicts = self.judge([(item, c.text) for item, c in zip(items, completions, strict=True)])
        return [
            Judged(item=item, completion=completion, verdict=verdict)
            for item, completion, verdict in zip(items, completions, verdicts, strict=True)
        ]

    # Groups and contexts: TRL's builder

    def build(
        self, output: dict[str, Any], prompts: list[Any], rewards: Tensor, feedbacks: list[Any] | None = None
    ) -> dict[str, Tensor]:
        """Groups of the step, contexts of this process's targets, advantages and the step's denominators."""
        size, config = self.run.rollouts.group_size, self.run
        local = len(self.judged) // size
        groups = make_groups(
            self.judged,
            size,
            step=self.state.global_step,
            first=self.accelerator.process_index * local,
            threshold=config.data.success_threshold,
        )
        everyone = gather_object(groups)
        known = [float("nan") if r.reward is None else r.reward for group in everyone for r in group.rollouts]
        mine = slice(self.accelerator.process_index * len(rewards), (self.accelerator.process_index + 1) * len(rewards))
        scaled = losses.advantages(torch.tensor(known), size, config.loss.advantage)[mine]
        output["advantages"] = scaled.to(output["completion_ids"].device)
        rows, plans = self._contexts(groups, everyone)
        order, say = self._say(groups, rows)
        self._reorder(output, order)
        return self._teacher_inputs(output, groups, rows, plans, order, say)

    def _contexts(self, groups: Sequence[Any], everyone: Sequence[Any]) -> tuple[list[Row], list[Any]]:
        """A row for each response, with its context where the method has one."""
        cond = self.run.condition
        if self.planner is None or cond is None:
            return [Row(rollout_id=r.rollout_id) for group in groups for r in group.rollouts], []
        planner = self.planner
        if planner.pool is not None:
            planner = replace(planner, pool=Pool(everyone, planner.seed))
        plans = [planner.serve(group) for group in groups]
        return [row for plan in plans for row in group_rows(plan, cond)], plans

    def _say(self, groups: Sequence[Any], rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        """The order of this process's responses, and who of them has a say in the objective, in that order."""
        responses = [r for group in groups for r in group.rollouts]
        order = list(range(len(responses)))
        match self.run.recipe.objective:
            case "policy":
                return order, [1.0] * len(order)
            case "likelihood":
                return order, [float(r.success is True) for r in responses]
            case "distil":
                return order, [float(row.context_id is not None) for row in rows]
            case "preference":
                size = self.run.rollouts.group_size
                pairs = [preference_order(group) for group in groups]
                order = [g * size + i for g, (places, _) in enumerate(pairs) for i in places]
                return order, [float(i < n) for _, n in pairs for i in range(size)]

    @staticmethod
    def _reorder(output: dict[str, Any], order: list[int]) -> None:
        if order != list(range(len(order))):
            for name, value in output.items():
                if isinstance(value, Tensor) and value.ndim:
                    output[name] = value[torch.tensor(order, device=value.device)]

    def _teacher_inputs(
        self,
        output: dict[str, Any],
        groups: list[Any],
        rows: list[Row],
        plans: list[Any],
        order: list[int],
        say: list[float],
    ) -> dict[str, Tensor]:
        device, ids, mask = output["completion_ids"].device, output["completion_ids"], output["completion_mask"]
        bare = zip(output["prompt_ids"], output["prompt_mask"].bool(), strict=True)
        contexts = [
            prompt[kept] if rows[i].context_ids is None else torch.as_tensor(rows[i].context_ids, device=device).long()
            for i, (prompt, kept) in zip(order, bare, strict=True)
        ]
        pad_id: Any = self._tokenizer.pad_token_id
        filled = pad(contexts, padding_value=pad_id, padding_side="left")
        seen = pad([torch.ones_like(c) for c in contexts], padding_value=0, padding_side="left")
        output["row"] = torch.arange(len(order), device=device)
        weight = torch.tensor(say, device=device)
        self.batch = Batch(
            step=self.state.global_step,
            groups=groups,
            rows=rows,
            plans=plans,
            order=order,
            shares=self._shares(mask, weight),
            policy_shares=self._shares(mask, torch.ones_like(weight)),
        )
        return {
            "teacher_input_ids": torch.cat([filled, ids], dim=1),
            "teacher_attention_mask": torch.cat([seen, mask], dim=1),
            "self_distillation_mask": weight,
        }

    def _shares(self, mask: Tensor, weight: Tensor) -> Shares:
        mine = torch.stack([(mask.sum(1) * weight).sum(), weight.sum()]).double()
        total = self.accelerator.reduce(mine, reduction="sum")
        return losses.step_shares(total[0], total[1])

    # Losses

    def _forward_logits(self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
        }
        if "logits_to_keep" in self.model_kwarg_keys:
            inputs["logits_to_keep"] = logits_to_keep + 1
        logits = model(**inputs).logits[:, :-1][:, -logits_to_keep:]
        return logits / self.temperature

    def _compute_rollout_logps(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
    ) -> Tensor | None:
        """Log-probs under the policy that sampled [B, T], where it will not be the student's; None where it will.

        Deviation from TRL, which holds the logits of all of a process's responses at once: a micro-batch at a time.
        """
        if self.num_iterations == 1:
            return None
        parts = [
            super(PeerTrainer, self)._compute_rollout_logps(*part)
            for part in zip(
                *(
                    tensor.split(self.run.optimizer.micro_batch)
                    for tensor in (prompt_ids, prompt_mask, completion_ids, completion_mask)
                ),
                strict=True,
            )
        ]
        return torch.cat([part for part in parts if part is not None])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's part of the step's loss; the parts of all micro-batches and processes add up to it."""
        batch, config = self.batch, self.run.loss
        if batch is None:
            raise RuntimeError("no rollouts were sampled before the loss")
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        if self.run.teacher_kind is None:
            student = self._student_logits(model, inputs)
            teacher = None
        else:
            both = self._compute_teacher_student_logits(model, self.teacher_model, inputs)
            student, teacher = both.student_logits, both.teacher_logits
        now, then = losses.log_probs(student, ids), inputs.get("old_per_token_logps")
        say = mask * inputs["self_distillation_mask"][:, None]
        processes = self.accelerator.num_processes
        match self.run.recipe.objective:
            case "preference":
                reference = losses.log_probs(_given(teacher), ids)
                paired = inputs["self_distillation_mask"]
                pairs = losses.preference(now, reference, mask, paired, config.dpo_beta)
                loss = pairs.sum() * processes * 2 / batch.shares.sequences
            case "likelihood":
                per_token = losses.likelihood(now)
                loss = losses.mean_over_step(per_token, say, config.average, batch.shares, processes)
            case "policy":
                loss = self._policy_part(now, then, inputs, batch)
            case "distil":
                per_token = losses.divergence(student, _given(teacher), ids, config)
                per_token = losses.weigh(per_token, now, then, config.importance_clip)
                loss = losses.mean_over_step(per_token, say, config.average, batch.shares, processes)
                if config.distillation_weight < 1:
                    share = config.distillation_weight
                    loss = share * loss + (1 - share) * self._policy_part(now, then, inputs, batch)
        self._keep_scores(inputs, student, teacher, now, then)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of step {self.state.global_step} is {loss.item()}: lower learning_rate or max_grad_norm, or "
                "take precision = 'float32', and go on from the last checkpoint with --resume"
            )
        return loss

    def _student_logits(self, model: Any, inputs: Any) -> Tensor:
        return self._forward_logits(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
        )

    def _policy_part(self, now: Tensor, then: Tensor | None, inputs: Any, batch: Batch) -> Tensor:
        config, mask = self.run.loss, inputs["completion_mask"]
        per_token = losses.policy_gradient(
            now, then, inputs["advantages"], clip_low=config.clip_low, clip_high=config.clip_high
        )
        return losses.mean_over_step(
            per_token, mask, config.average, batch.policy_shares, self.accelerator.num_processes
        )

    def _keep_scores(
        self, inputs: Any, student: Tensor, teacher: Tensor | None, now: Tensor, then: Tensor | None
    ) -> None:
        """Token scores of responses that have a context, before the first update on them; the clip rate after it."""
        batch, config = self.batch, self.run
        first = self._step % (self.args.steps_per_generation * self.num_iterations) < self.args.steps_per_generation
        if batch is None or teacher is None or not batch.plans:
            return
        if not first:
            self._count_clipped(now, then, inputs)
            return
        for i, row in enumerate(inputs["row"].tolist()):
            placed = batch.rows[batch.order[row]]
            n = int(inputs["completion_mask"][i].sum())
            if placed.context_id is None or not n:
                continue
            heat = config.rollouts.temperature
            ids = inputs["completion_ids"][i, :n]
            scores = losses.row_scores(student[i, :n].detach() * heat, teacher[i, :n] * heat, ids, config.loss.top_k)
            batch.scored.append(
                Scored(
                    rollout_id=placed.rollout_id,
                    teacher=scores.teacher.numpy(),
                    student=scores.student.numpy(),
                    teacher_entropy=scores.teacher_entropy.numpy(),
                    student_entropy=scores.student_entropy.numpy(),
                    teacher_rank=scores.teacher_rank.numpy(),
                    student_rank=scores.student_rank.numpy(),
                    student_mass=float(scores.student_mass.mean()),
                    teacher_mass=float(scores.teacher_mass.mean()),
                    clipped=_clipped(now[i, :n], None if then is None else then[i, :n], config.loss.importance_clip),
                )
            )

    def _count_clipped(self, now: Tensor, then: Tensor | None, inputs: Any) -> None:
        kept = inputs["completion_mask"].bool()
        share = _clipped(now[kept], None if then is None else then[kept], self.run.loss.importance_clip)
        if share is not None:
            self._metrics["train"]["importance/clip_rate"].append(share)

    # Steps

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step; the last one of a batch's first pass writes the evidence."""
        per_update = self.args.gradient_accumulation_steps
        if self._step % per_update == 0:
            self.dropping = False
        try:
            loss = self._dropped() if self.dropping else super().training_step(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            loss = None
            self._out_of_memory(error)
        if loss is None:
            release()
            model.zero_grad()
            self._buffered_inputs = None  # what is there may be of the batch before
            self.dropping, loss = True, self._dropped()
        cycle = self._step % (self.args.steps_per_generation * self.num_iterations)
        if cycle == self.args.steps_per_generation % (self.args.steps_per_generation * self.num_iterations):
            if not self.dropping:
                self.dropped_steps = 0
            self._record_step()
        return loss

    def _dropped(self) -> Tensor:
        self._step += 1
        return torch.zeros((), device=self.accelerator.device)

    def _out_of_memory(self, error: BaseException) -> None:
        """Count a step that is dropped; give up where dropping cannot help."""
        self.dropped_steps += 1
        self.judge.events["out_of_memory"] += 1
        mend = (
            f"lower micro_batch (now {self.run.optimizer.micro_batch}), max_response_tokens or max_context_tokens, or "
            "turn gradient_checkpointing on, and go on with --resume"
        )
        if self.accelerator.num_processes > 1:
            raise TrainingError(f"out of memory on process {self.accelerator.process_index}: {mend}") from error
        if self.dropped_steps >= DROPPED_STEPS:
            raise TrainingError(f"out of memory at step {self.state.global_step}: {mend}") from error

    def _record_step(self) -> None:
        batch = self.batch
        if batch is None or batch.recorded:
            return
        batch.recorded = True
        local = StepRecord(
            groups=batch.groups,
            rows=batch.rows if batch.plans else (),
            plans=batch.plans,
            scored=batch.scored,
            events=dict(self.judge.events),
        )
        self.judge.events.clear()
        parts: list[StepRecord] = gather_object([local])
        if not self.accelerator.is_main_process:
            return
        events: dict[str, int] = {}
        for part in parts:
            for name, n in part.events.items():
                events[name] = events.get(name, 0) + n
        whole = StepRecord(
            groups=[g for p in parts for g in p.groups],
            rows=[r for p in parts for r in p.rows],
            plans=[g for p in parts for g in p.plans],
            scored=[s for p in parts for s in p.scored],
            events=events,
        )
        items = [group.group_id.split("-", 2)[2] for group in whole.groups]
        for name, value in self.evidence.record(batch.step, whole, items).items():
            if value is not None:
                self._metrics["train"][name].append(value)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """mean@k and pass@k on the held-out prompts, k responses to each, the same random numbers every time.

        Returns:
            ``eval_mean@k``, ``eval_pass@k`` (means over prompts with at least k judged responses), the mean length, and
            the fraction that could not be judged. The same on every process.
        """
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in heldout.measure(self).items()}
        self._note_best(metrics)
        was_training = self.model.training
        self.model.eval()  # TRL's log asks the model which kind of metrics these are
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _note_best(self, metrics: dict[str, float]) -> None:
        """Write down the best evaluation that will have a checkpoint."""
        value = metrics.get(f"eval_{self.run.run.best_metric}@{self.run.run.evaluate_k}")
        if value is None or not self.state.global_step or not self.accelerator.is_main_process:
            return
        best = self.evidence.best
        if best is None or value > best["value"]:
            self.evidence.best = {
                "checkpoint": f"checkpoint-{self.state.global_step}",
                "metric": self.run.run.best_metric,
                "value": value,
            }

    # Teachers and checkpoints

    def _setup_teacher_model(self) -> None:
        kind = self.run.teacher_kind
        if kind == "external":
            self.teacher_model = self._external()
        elif kind == "ema" and self._use_peft_ema_teacher_adapter():
            rate = self.args.teacher_update_rate
            self.add_callback(AdapterAverage(model=self.model, update_rate=rate, accelerator=self.accelerator))
            self.teacher_model = self.model
        else:
            super()._setup_teacher_model()

    def _external(self) -> Any:
        trust = self.run.model.trust_remote_code
        folder = models.resolve(self.run.teacher.teacher_model or "", trust_remote_code=trust)
        model: Any = create_model_from_path(str(folder), dtype="float32", trust_remote_code=trust, device_map=None)
        model.requires_grad_(False)
        model.eval()
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _get_teacher_context_for_self_distillation(self) -> Any:
        if self.run.teacher_kind == "external":
            return nullcontext()
        return super()._get_teacher_context_for_self_distillation()

    @property
    def _averages_a_copy(self) -> bool:
        return self.run.teacher_kind == "ema" and not is_peft_model(self.model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        output = Path(self.args.output_dir)
        folder = output / f"checkpoint-{self.state.global_step}"
        if self._averages_a_copy:
            save_average(self.teacher_model, self.accelerator, folder)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.evidence.join()
            checkpoints.mark_complete(folder, self.evidence.state())
            if self.evidence.best is not None:
                write_json(self.evidence.best, output / "best.json")
            checkpoints.prune(output, self.run.run.keep)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """Put back what transformers does not know of: the averaged teacher, and what the evidence has counted."""
        if self._averages_a_copy:
            load_average(self.teacher_model, self.accelerator, checkpoint)
        if self.accelerator.is_main_process:
            self.evidence.restore(checkpoints.read_mark(checkpoint), checkpoints.step_of(checkpoint))


def _dataset(items: Sequence[TaskItem]) -> Dataset:
    prompts = [i.prompt if isinstance(i.prompt, str) else [dict(m) for m in i.prompt] for i in items]
    return Dataset.from_dict({"prompt": prompts, "place": list(range(len(items)))})


def _messages(prompt: Sequence[Any]) -> tuple[Message, ...]:
    return tuple(Message(role=m["role"], content=m["content"]) for m in prompt)


def _given(teacher: Tensor | None) -> Tensor:
    """The teacher's logits, which every method with a teacher has."""
    if teacher is None:
        raise RuntimeError("the method has a teacher, but no teacher was asked")
    return teacher


def _clipped(now: Tensor, then: Tensor | None, clip: float | None) -> float | None:
    """Share of tokens whose importance ratio is over the clip; None where nothing is weighed."""
    if then is None or clip is None or not now.numel():
        return None
    return float(((now.detach() - then).exp() > clip).float().mean())
