"""Teachers that TRL does not have, or that must live in a checkpoint.

TRL makes the live, the frozen and the averaged teacher. Ours are the external one, and two repairs of the averaged one:
it is written into every checkpoint and read back, and the LoRA average starts at the student's adapter. (TRL starts it
at zero, so that for the first hundred steps the average is of the student and of nothing; and it has no place for the
average in a checkpoint, so that a resumed run would start it anew.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import AutoModelForCausalLM
from trl.experimental.sdpo.teacher_sync import PEFTAdapterEMACallback

from mopd.tokens import HFCodec
from training.config import ModelConfig

__all__ = ["AdapterAverage", "check_vocabulary", "load_average", "lora_config", "save_average"]

FOLDER = "teacher"
"""Of a checkpoint: the averaged teacher, as transformers (or, for an adapter, PEFT) saves it."""


class TeacherError(ValueError):
    """The teacher cannot teach this student; the message says why and what to do."""


def lora_config(model: ModelConfig) -> LoraConfig:
    """The adapters that a configuration asks for."""
    targets = list(model.lora_targets)
    return LoraConfig(
        r=model.lora_rank,
        lora_alpha=model.lora_alpha,  # pyright: ignore[reportArgumentType]
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def check_vocabulary(student: HFCodec, teacher: HFCodec) -> None:
    """Refuse a teacher whose tokens are not the student's: its log-probs would be of other words.

    Raises:
        TeacherError: with what differs.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours == theirs:
        return
    moved = sorted((token for token, i in ours.items() if theirs.get(token) != i), key=lambda token: ours[token])
    example = (
        f"token {moved[0]!r} is {ours[moved[0]]} for the student and {theirs.get(moved[0])} for the teacher"
        if moved
        else f"the teacher has {len(theirs) - len(ours)} tokens more"
    )
    raise TeacherError(
        f"the teacher {teacher.name!r} has another vocabulary than the student {student.name!r} "
        f"({len(theirs)} and {len(ours)} tokens; {example}): choose a teacher of the student's family"
    )


class AdapterAverage(PEFTAdapterEMACallback):
    """The average of a LoRA student, from its first adapter on, or from the one that a checkpoint brought."""

    def _initialize_teacher_adapter(self) -> None:
        if self._initialized:
            return
        model = self.model if self.accelerator is None else self.accelerator.unwrap_model(self.model)
        student = model.active_adapter or "default"
        self.teacher_adapter_config = model.peft_config[student]
        if self.teacher_adapter_name not in model.peft_config:
            model.add_adapter(self.teacher_adapter_name, self.teacher_adapter_config)
            state = get_peft_model_state_dict(model, adapter_name=student)
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, state, adapter_name=self.teacher_adapter_name)
            model.set_adapter(student)
        held = get_peft_model_state_dict(model, adapter_name=self.teacher_adapter_name)
        self.shadow_weights = {name: value.detach().clone() for name, value in held.items()}
        self._initialized = True


def save_average(teacher: Any, accelerator: Any, checkpoint: Path) -> None:
    """Write the averaged teacher into a checkpoint, as a model that transformers loads. Every process calls this."""
    state = accelerator.get_state_dict(teacher)
    if accelerator.is_main_process:
        accelerator.unwrap_model(teacher).save_pretrained(checkpoint / FOLDER, state_dict=state)


def load_average(teacher: Any, accelerator: Any, checkpoint: Path, *, trust_remote_code: bool = False) -> None:
    """Put the averaged teacher of a checkpoint back.

    Args:
        teacher: whose weights are replaced.
        accelerator: of the run.
        checkpoint: its folder.
        trust_remote_code: run code that comes with the model, as when the run began.

    Raises:
        TeacherError: the checkpoint has none.
    """
    folder = checkpoint / FOLDER
    if not (folder / "config.json").is_file():
        raise TeacherError(f"{checkpoint} has no averaged teacher: it was not written by a run with teacher = 'ema'")
    inner = accelerator.unwrap_model(teacher)
    saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    if accelerator.num_processes == 1:
        inner.load_state_dict(saved.state_dict())
    else:
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(inner, saved.state_dict(), options=options)
