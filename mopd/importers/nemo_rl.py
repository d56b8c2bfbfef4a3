"""NeMo-RL's ``train_data_step{N}.jsonl``.

A line is a batch of size one, so every value but ``idx`` is a list of one entry: ``content`` (the texts of
the conversation's messages, each already rendered by the chat template), ``rewards``, ``input_lengths``,
``generation_logprobs``, ``prev_logprobs`` and, in newer releases, ``advantages``, ``token_ids`` (prompt and response,
padded), ``token_loss_mask`` (1 on the tokens of assistant messages) and ``sample_loss_mask``. The step is in the file's
name. Distillation writes the same file without rewards, which is not taken for rollouts here. With dynamic sampling
``rewards`` holds the batch *before* filtering, which need not line up with the rest; ``filtered_rewards`` does, and is
taken where it is there.

Lines that hold a NeMo-Gym ``full_result`` instead of ``content`` are not read.

Schema: NVIDIA-NeMo/RL, the logging part of ``nemo_rl/algorithms/grpo.py``, ``log_batched_dict_as_jsonl`` of
``nemo_rl/utils/logger.py`` and ``batched_message_log_to_flat_message`` of ``nemo_rl/data/llm_message_utils.py``, which
makes ``content`` the list of a conversation's texts.
"""

from __future__ import annotations

from typing import Any

from mopd.importers.base import FileContext, Record, Row, RowError
from mopd.importers.prompts import as_prompt
from mopd.importers.values import as_ids, as_reward, as_text, kind_of
from mopd.importers.verifiers import SEVERAL_TURNS

__all__ = ["parse_nemo_rl"]


def parse_nemo_rl(record: Record, context: FileContext) -> Row:
    content = single(record, "content")
    if not isinstance(content, list) or len(content) < 2:
        raise RowError("field 'content' does not hold a prompt and a response", kind_of(content))
    texts = [as_text(text, "content") for text in content]
    prompt, notes = as_prompt("".join(texts[:-1]), "content", context.options.prompt_as)
    if len(texts) > 2 and not isinstance(prompt, str) and any(m["role"] == "assistant" for m in prompt):
        raise RowError(SEVERAL_TURNS, f"{len(texts)} messages")
    reward, reward_notes = as_reward(
        single(record, "filtered_rewards" if "filtered_rewards" in record else "rewards"), "rewards"
    )
    return Row(
        prompt=prompt,
        response=texts[-1],
        reward=reward,
        response_ids=sampled_ids(record),
        step=context.step,
        notes=notes + reward_notes,
    )


def single(record: Record, name: str) -> Any:
    """The one entry of a batch of one; a value outside of a list is taken as it is."""
    value = record.get(name)
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise RowError(f"field {name!r} is not a batch of one", f"{len(value)} entries")
    return value[0]


def sampled_ids(record: Record) -> tuple[int, ...] | None:
    """The token ids under the loss mask; a mask in several pieces means several sampled turns."""
    ids = as_ids(single(record, "token_ids"), "token_ids")
    mask = single(record, "token_loss_mask")
    if ids is None or mask is None:
        return None
    if not isinstance(mask, list) or len(mask) != len(ids):
        raise RowError("field 'token_loss_mask' does not match 'token_ids'")
    kept = [index for index, on in enumerate(mask) if on]
    if kept and kept[-1] - kept[0] + 1 != len(kept):
        raise RowError(SEVERAL_TURNS, "the loss mask is in several pieces")
    return tuple(ids[index] for index in kept) or None
