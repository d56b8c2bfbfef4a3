"""Groups, rollouts and tokenizers that several tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mopd.rollouts import Group, Message, Prompt, Rollout, rollout_frame

PROMPT: tuple[Message, ...] = (
    Message(role="system", content="Answer with a number."),
    Message(role="user", content="What is 2 + 2?"),
)


def make_group(
    labels: str,
    *,
    group_id: str = "g",
    prompt: Prompt = PROMPT,
    responses: Sequence[str] | None = None,
    **fields: Sequence[Any],
) -> Group:
    """A group from a word of labels: ``s`` success, ``f`` failure, ``?`` not judged.

    Args:
        labels: one letter a rollout; their ids are ``g-0``, ``g-1`` and so on.
        group_id: of the group, and the start of the ids.
        prompt: of the group.
        responses: one a rollout; by default all different.
        fields: further fields of ``Rollout``, one value a rollout.
    """
    texts = responses if responses is not None else [f"attempt {i}" for i in range(len(labels))]
    rollouts = tuple(
        Rollout(
            rollout_id=f"{group_id}-{i}",
            group_id=group_id,
            response=text,
            success={"s": True, "f": False, "?": None}[label],
            **{name: values[i] for name, values in fields.items()},
        )
        for i, (label, text) in enumerate(zip(labels, texts, strict=True))
    )
    return Group(group_id=group_id, task="sums", prompt=prompt, rollouts=rollouts)


def make_rollouts(groups: Mapping[str, str], **columns: Any) -> pl.DataFrame:
    """A table of rollouts from words of labels, as in ``make_group``; ``columns`` hold one value for all rows."""
    rows = [
        {
            "group_id": group_id,
            "rollout_id": f"{group_id}-{i}",
            "task": "sums",
            "prompt": [dict(m) for m in PROMPT],
            "response": f"attempt {i} of {group_id}",
            "reward": {"s": 1.0, "f": 0.0, "?": None}[label],
            "success": {"s": True, "f": False, "?": None}[label],
        }
        | columns
        for group_id, labels in groups.items()
        for i, label in enumerate(labels)
    ]
    return rollout_frame(rows, text_prompts=isinstance(columns.get("prompt"), str))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA = (
    "{{ '<bos>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def byte_tokenizer(
    template: str | None, *, special: Sequence[str], bos: str | None = None, eos: str | None = None, **named: str
) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the 256 bytes and ``special``; ``bos`` is put before plain text.

    The special tokens are only marked so, as in the files of Qwen, Llama and Gemma; those that have a name besides
    (``eos_token`` and so on) are in ``named``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    around = [token for token in (bos, eos) if token is not None]
    if around:
        core.post_processor = processors.TemplateProcessing(
            single=" ".join([*([bos] if bos else []), "$A", *([eos] if eos else [])]),
            special_tokens=[(token, core.token_to_id(token)) for token in around],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **named)


def chatml_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """As Qwen: the end of turn is the EOS, ``<|im_start|>`` has no name."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return byte_tokenizer(template, special=special, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 3: BOS by template and by tokenizer; EOS is another token than the end of a turn, which has no name."""
    special = ("<bos>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_tokenizer(LLAMA, special=special, bos="<bos>", bos_token="<bos>", eos_token="<|end_of_text|>")


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """As Gemma: turns end with ``<end_of_turn>``, the EOS is ``<eos>``, a system message is refused."""
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    return byte_tokenizer(GEMMA, special=special, bos="<bos>", bos_token="<bos>", eos_token="<eos>")
