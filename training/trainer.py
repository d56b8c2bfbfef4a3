"""The trainer: TRL's SDPO trainer with our contexts, our means and our evidence.

What is TRL's: sampling (transformers or vLLM), gathering, the teacher's forward, EMA, PEFT, accelerate, checkpoints.
What is overridden, and why:

* the teacher's context (``teacher_context_builder``, the seam that TRL offers): ``training.builder``;
* tokenising of prompts: the study's codec, which never cuts (too long a prompt is refused before the first step);
* ends of a response: the study's, which are those that the model names and the template's end of a turn;
* the loss: ``training.objective``; its means and the advantages: ``training.losses`` says how they deviate;
* positions: the forward is given ``position_ids`` that count tokens, so that left padding is nothing to a model whose
  positions are not relative;
* the data order, written out beforehand (``training.data.training_order``);
* evaluation: mean@k and pass@k of responses to held-out prompts, instead of a loss;
* TRL's metrics of rewards and lengths, which take an unjudged response for a reward of 0 and write 0 for the length of
  finished responses where none is: the evidence has its own;
* checkpoints: ``training.checkpoints``;
* a step whose loss has no gradient: the optimiser rests (under DeepSpeed, which steps by itself, it does not);
* out of memory: on one process the optimiser step is dropped and counted.
"""

# transformers' Trainer declares its model optional, its arguments as those of the base class and a tokenizer's ids as
# anything: what TRL and this module set is not known to a type checker.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object, is_peft_model, set_seed
from datasets import Dataset
from torch import Tensor
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path

from mopd import models
from mopd.generation.base import complete, end_ids
from mopd.rollouts import Message
from mopd.store import write_json
from mopd.tasks import TaskItem
from mopd.teachers.memory import out_of_memory, release
from mopd.tokens import HFCodec
from training import checkpoints, heldout, losses, objective, scoring
from training.batch import Batch, trimmed
from training.builder import ContextBuilder
from training.config import RunConfig, TrainingError
from training.data import Prompts, training_order
from training.evidence import Evidence, StepRecord
from training.groups import Judged, planner_of
from training.rewards import Judge
from training.teachers import AdapterAverage, load_average, save_average

__all__ = ["PeerTrainer"]

DIVERGED = (
    "begin anew, under another --output, with a lower learning_rate or max_grad_norm, or with precision = 'float32'"
)
DROPPED_STEPS = 3
"""Steps in a row that may be dropped for want of memory."""


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
        self.eos_token_ids = sorted(end_ids(self.eos_token_ids, codec))
        self.generation_config.eos_token_id = self.eos_token_ids
        reader = self.teacher_model if config.teacher_kind == "external" else self.model
        settings = self.accelerator.unwrap_model(reader).config.get_text_config()
        window = getattr(settings, "max_position_embeddings", None)
        self.teacher_context_builder: Any = ContextBuilder(self, planner_of(config, teacher_codec, window))
        set_seed(arguments.seed, device_specific=True)  # or two processes would draw alike

    # Rollouts and rewards

    def _tokenize_prompts_untruncated(self, prompts: list[Any]) -> list[list[int]]:
        return [self.codec.encode_prompt(p if isinstance(p, str) else _messages(p)) for p in prompts]

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """TRL's, up to the first end token: vLLM goes on behind an end of turn that the model does not name."""
        prompts, completions = super()._generate(prompt_ids)
        ends = frozenset(self.eos_token_ids)
        return prompts, [list(complete(ids, ends, self.codec).ids) for ids in completions]

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

    def _record_reward_diagnostics(self, *_: Any) -> None:
        """Nothing: ``training.evidence`` measures rewards and groups."""

    def _record_completion_metrics(self, *_: Any) -> None:
        """Nothing: ``training.evidence`` measures lengths."""

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
        whole = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
        }
        width, found = completion_ids.shape[1], []
        for start in range(0, len(completion_ids), self.run.optimizer.micro_batch):
            rows = slice(start, start + self.run.optimizer.micro_batch)
            part = super()._compute_rollout_logps(**trimmed({name: value[rows] for name, value in whole.items()}))
            if part is not None:
                found.append(torch.nn.functional.pad(part, (0, width - part.shape[1])))
        return torch.cat(found)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's part of the step's loss; the parts of all micro-batches and processes add up to it."""
        batch = self.batch
        if batch is None:
            raise RuntimeError("no rollouts were sampled before the loss")
        if batch.idle and not self.is_deepspeed_enabled:  # nothing to forward for
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        inputs = trimmed(inputs)
        if self.run.teacher_kind is None:
            student = self._student_logits(model, inputs)
            teacher = None
        else:
            both = self._compute_teacher_student_logits(model, self.teacher_model, inputs)
            student, teacher = both.student_logits, both.teacher_logits
        now, then = losses.log_probs(student, inputs["completion_ids"]), inputs.get("old_per_token_logps")
        loss = objective.part(
            self.run,
            batch,
            inputs,
            student=student,
            teacher=teacher,
            now=now,
            then=then,
            processes=self.accelerator.num_processes,
        )
        if batch.recorded:  # a second update on it
            share = scoring.clipped_share(self.run, inputs, now, then)
            if share is not None:
                self._metrics["train"]["importance/clip_rate"].append(share)
        elif teacher is not None and batch.plans:
            batch.scored += scoring.score_rows(self.run, batch, inputs, student, teacher, now, then)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of step {self.state.global_step} is {loss.item()}: {DIVERGED}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers'; a gradient that is not finite ends the run before it spoils weights and checkpoint."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(f"the gradient of step {self.state.global_step} has norm {float(norm)}: {DIVERGED}")
        return norm

    def _student_logits(self, model: Any, inputs: Any) -> Tensor:
        return self._forward_logits(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
        )

    # Steps

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step; the last one of an update writes the evidence."""
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
            self.dropping, loss = True, self._dropped()
        if self._step % per_update == 0:
            if not self.dropping:
                self.dropped_steps = 0
            if self.batch is not None and self.batch.idle:
                # With gradients of 0 the optimiser would go on along those of the steps before; without any it rests
                model.zero_grad(set_to_none=True)
                self.judge.events["idle_step"] += int(self.accelerator.is_main_process)
            self._record_update()
        return loss

    def _prepare_training_batch(self, inputs: Any) -> Any:
        """TRL's sampling. Should memory run out in it, the updates to come find no batch, not the one before."""
        self.batch = self._buffered_inputs = None
        return super()._prepare_training_batch(inputs)

    def _dropped(self) -> Tensor:
        self._step += 1
        return torch.zeros((), device=self.accelerator.device)

    def _out_of_memory(self, error: BaseException) -> None:
        """Count a step that is dropped; give up where dropping cannot help."""
        self.dropped_steps += 1
        self.judge.events["out_of_memory"] += 1
        mend = (
            f"lower micro_batch (now {self.run.optimizer.micro_batch}) or turn gradient_checkpointing on, and go on "
            "with --resume; or begin anew, under another --output, with a lower max_response_tokens or "
            "max_context_tokens"
        )
        if self.accelerator.num_processes > 1:
            raise TrainingError(f"out of memory on process {self.accelerator.process_index}: {mend}") from error
        if self.dropped_steps >= DROPPED_STEPS:
            raise TrainingError(f"out of memory at step {self.state.global_step}: {mend}") from error

    def _record_update(self) -> None:
        """Hand the evidence what an update leaves: of a batch's first one its rollouts, of every one its events."""
        events = dict(self.judge.events)
        self.judge.events.clear()
        fresh = None if self.batch is None or self.batch.recorded else self.batch
        if fresh is not None:
            fresh.recorded = True
        parts = gather_object([StepRecord(groups=(), events=events) if fresh is None else fresh.record(events)])
        if not self.accelerator.is_main_process:
            return
        whole = StepRecord.whole(parts)
        if fresh is None:
            found = self.evidence.count(whole.events)
        else:
            items = [group.group_id.split("-", 2)[2] for group in whole.groups]
            found = self.evidence.record(fresh.step, whole, items)
        for name, value in found.items():
            if value is not None:
                self._metrics["train"][name].append(value)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """mean@k and pass@k on the held-out prompts, k responses to each, from the same random state every time.

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
            trust = self.run.model.trust_remote_code
            load_average(self.teacher_model, self.accelerator, checkpoint, trust_remote_code=trust)
        if self.accelerator.is_main_process:
            self.evidence.restore(checkpoints.read_mark(checkpoint), checkpoints.step_of(checkpoint))


def _dataset(items: Sequence[TaskItem]) -> Dataset:
    prompts = [i.prompt if isinstance(i.prompt, str) else [dict(m) for m in i.prompt] for i in items]
    return Dataset.from_dict({"prompt": prompts, "place": list(range(len(items)))})


def _messages(prompt: Sequence[Any]) -> tuple[Message, ...]:
    return tuple(Message(role=m["role"], content=m["content"]) for m in prompt)
