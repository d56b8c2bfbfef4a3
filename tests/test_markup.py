"""Rendered prompts back into messages."""

# ruff: noqa: E501 (rendered prompts are one line each)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.importers import RowError, split_prompt
from mopd.models import is_installed, preset_folder

ONE = [("user", "What is 2+2?")]
WITH_SYSTEM = [("system", "Be brief."), ("user", "What is 2+2?")]
TWO_TURNS = [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")]

RENDERED = [
    ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n", WITH_SYSTEM),
    ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", TWO_TURNS),
    ("words-on-lines", "system\nBe brief.\nuser\nWhat is 2+2?\nassistant\n", WITH_SYSTEM),
    ("words-on-lines", "user\nHi\nassistant\nHello\nuser\n2+2?\nassistant\n", TWO_TURNS),
    ("words-on-lines", "user\nWhat is 2+2?\nmodel\n", ONE),
    ("llama-3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", WITH_SYSTEM),
    ("words-glued", "system\n\nBe brief.user\n\nWhat is 2+2?assistant\n\n", WITH_SYSTEM),
    ("words-glued", "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nuser\n\nWhat is 2+2?assistant\n\n", ONE),
    ("llama-4", "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWhat is 2+2?<|eot|><|header_start|>assistant<|header_end|>\n\n", ONE),
    ("gemma", "<bos><start_of_turn>user\nWhat is 2+2?<end_of_turn>\n<start_of_turn>model\n", ONE),
    ("granite", "<|start_of_role|>user<|end_of_role|>What is 2+2?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>", ONE),
    ("deepseek", "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is 2+2?<｜Assistant｜><think>\n", WITH_SYSTEM),
    ("deepseek-v2", "<｜begin▁of▁sentence｜>Be brief.\n\nUser: What is 2+2?\n\nAssistant:", WITH_SYSTEM),
    ("phi-4", "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>What is 2+2?<|im_end|><|im_start|>assistant<|im_sep|>", WITH_SYSTEM),
    ("bars", "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is 2+2?<|end|>\n<|assistant|>\n", WITH_SYSTEM),
    ("bars", "<|user|>\nWhat is 2+2?</s>\n<|assistant|>\n", ONE),
    ("bars", "[gMASK]<sop><|user|>\nWhat is 2+2?<|assistant|>\n", ONE),
    ("inst", "<s>[INST] What is 2+2? [/INST]", ONE),
    ("inst", "<s>[INST] Hi [/INST] Hello</s> [INST] 2+2? [/INST]", TWO_TURNS),
    ("inst", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is 2+2? [/INST]", WITH_SYSTEM),
    ("inst", "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]What is 2+2?[/INST]", WITH_SYSTEM),
]  # fmt: skip


@pytest.mark.parametrize(("markup", "text", "expected"), RENDERED, ids=[f"{r[0]}-{i}" for i, r in enumerate(RENDERED)])
def test_split(markup: str, text: str, expected: list[tuple[str, str]]) -> None:
    messages, name, _ = split_prompt(text)
    assert (name, [(m["role"], m["content"]) for m in messages]) == (markup, expected)


@pytest.mark.parametrize("tail", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_thinking_tag_after_the_header_is_noted(tail: str) -> None:
    messages, _, notes = split_prompt(f"user\nWhat?\nassistant\n{tail}")
    assert len(messages) == 1
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Q: 2+2? A:", "no assistant header"),
        ("", "no assistant header"),
        ("user\nWhat?\nassistant\nThe answer is", "no assistant header"),
        ("<|im_start|>user\nHi<|im_end|>\n", "no assistant header"),
        ("user\nthe line\nuser\nstands alone\nassistant\n", "more than one way"),
        ("system\n\nYou help the user\n\nalways.user\n\nQ?assistant\n\n", "more than one way"),
        ("[INST] Hi [/INST] Hello", r"does not end in \[/INST\]"),
    ],
)
def test_what_cannot_be_split_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        split_prompt(text)


def test_a_markup_quoted_in_the_question_stays_there() -> None:
    text = "<|im_start|>user\nWhat does <|user|>\nmean?<|im_end|>\n<|im_start|>assistant\n"
    assert split_prompt(text)[0][0]["content"] == "What does <|user|>\nmean?"


PIECES = st.sampled_from(
    ["system\n", "user\n", "assistant\n", "\n", "<|im_start|>", "<|im_end|>\n", "[INST]", "[/INST]", "User: ", "\n\n",
     "Assistant:", "<｜User｜>", "<｜Assistant｜>", "<|user|>", "<|assistant|>", "<think>", "x", "<s>", "<<SYS>>"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        messages, _, _ = split_prompt(text)
    except RowError:
        return
    assert messages
    assert all(m["role"] in ("system", "user", "assistant", "tool") for m in messages)
    assert text.find(messages[-1]["content"]) >= 0


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), min_size=1, max_size=30)


@given(PLAIN, PLAIN)
def test_chatml_keeps_the_text_to_the_letter(system: str, user: str) -> None:
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert [m["content"] for m in split_prompt(text)[0]] == [system, user]


@pytest.mark.integration
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-coder-0.5b"])
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_a_decoded_prompt_gives_the_same_tokens_again(model: str, skip_special_tokens: bool) -> None:
    if not is_installed(model):
        pytest.skip(f"{model} is not installed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(preset_folder(model))
    for conversation in (ONE, WITH_SYSTEM, TWO_TURNS, [("user", "A\n\nlong\n- list\n")]):
        messages = [{"role": role, "content": content} for role, content in conversation]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        split, _, _ = split_prompt(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        assert tokenizer.apply_chat_template(list(split), add_generation_prompt=True, return_dict=False) == ids
