"""Taking rendered prompts apart: text that ends in an assistant header back into chat messages.

Trainers log prompts as decoded text. ``MARKUPS`` lists the chat markups that are recognised, tried in order.
Two of them are what is left when the tokenizer drops special tokens while decoding
(``skip_special_tokens=True``, as verl and TRL do): ``system\\n…\\nuser\\n…\\nassistant\\n``. There the
content itself may hold the same words, so those are accepted only if the headings found alternate as a
conversation must, and a prompt that could be read in two ways is refused: a wrong prompt would be scored
without anybody noticing.

Markups whose special tokens leave no word behind (Mistral's control tokens, Phi-3, Phi-4) cannot be recovered
once dropped; such prompts are refused too, and can be kept as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mopd.importers.base import RowError
from mopd.rollouts import Message

__all__ = ["MARKUPS", "Markup", "split_prompt"]

CHAT_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "environment": "tool",
    "ipython": "tool",
    "observation": "tool",
}
ROLE = r"(?P<role>system|developer|user|assistant|model|tool|environment|ipython|observation)"
BOS = r"(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<\|endoftext\|>|\[gMASK\]|<sop>)"
LEADING = re.compile(rf"(?:\s|{BOS})*")
# what a template writes after the assistant header: nothing, an opened or an empty thinking block
GENERATION_PREFIX = re.compile(r"\s*(?:<think>\s*(?:</think>\s*)?)?")
LLAMA_DATES = re.compile(r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n\n")
PREFIX_NOTE = "a thinking tag after the assistant header was left out: the chat template writes it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Markup:
    """One way of writing a conversation as text.

    Attributes:
        header: matches a turn's heading; group ``role`` names who speaks.
        end: matches what closes a turn, at the end of its text.
        stripped: the headings are plain words, so they must alternate strictly.
        opening: role of text before the first heading, if the markup has such a place.
    """

    name: str
    header: re.Pattern[str]
    end: re.Pattern[str]
    stripped: bool = False
    opening: str | None = None


def markup(name: str, header: str, end: str, *, stripped: bool = False, opening: str | None = None) -> Markup:
    return Markup(
        name=name,
        header=re.compile(header),
        end=re.compile(rf"(?:{end})\Z"),
        stripped=stripped,
        opening=opening,
    )


MARKUPS: tuple[Markup, ...] = (
    markup("chatml", rf"<\|im_start\|>{ROLE}\n", r"<\|im_end\|>\n?"),
    markup("phi-4", rf"<\|im_start\|>{ROLE}<\|im_sep\|>\n?", r"<\|im_end\|>\n?"),
    markup("llama-3", rf"<\|start_header_id\|>{ROLE}<\|end_header_id\|>\n\n", r"<\|eot_id\|>"),
    markup("llama-4", rf"<\|header_start\|>{ROLE}<\|header_end\|>\n\n", r"<\|eot\|>"),
    markup("gemma", rf"<start_of_turn>{ROLE}\n", r"<end_of_turn>\n?"),
    markup("granite", rf"<\|start_of_role\|>{ROLE}<\|end_of_role\|>", r"<\|end_of_text\|>\n?"),
    markup("deepseek", r"<｜(?P<role>User|Assistant)｜>", r"(?:<｜end▁of▁sentence｜>)?", opening="system"),
    markup("bars", rf"<\|{ROLE}\|>\n?", r"(?:<\|end\|>|</s>|<\|endoftext\|>)?\n?"),
    markup("deepseek-v2", r"(?:^|(?<=\n\n)|(?<=<｜end▁of▁sentence｜>))(?P<role>User|Assistant):(?: |\Z)",
           r"(?:<｜end▁of▁sentence｜>|\n\n)?", opening="system"),
    markup("words-on-lines", rf"(?:^|(?<=\n)){ROLE}\n", r"\n", stripped=True),
    markup("words-glued", rf"{ROLE}\n\n", r"", stripped=True),
)  # fmt: skip
"""Chat markups, tried in order. ``bars`` is Phi-3, Zephyr, Tülu and GLM; the last two are ChatML or Gemma,
and Llama-3, without their special tokens. ``[INST]`` (Mistral, Llama-2) is read by ``split_inst``."""


def split_prompt(text: str) -> tuple[tuple[Message, ...], str, tuple[str, ...]]:
    """Messages of a rendered prompt, the name of its markup, and notes.

    Raises:
        RowError: no markup fits, more than one reading is possible, or the text does not end in an assistant
            header (as a prompt with a prefilled answer does not).
    """
    if "[INST]" in text:
        return (*split_inst(text), ())
    for candidate in MARKUPS:
        if candidate.header.search(text) is None:
            continue
        found = split_by(candidate, text)
        if found is not None:
            return found[0], candidate.name, found[1]
    raise RowError(
        "prompt text ends in no assistant header that is known",
        "prompt_as='text' keeps such prompts as they are",
    )


def split_by(candidate: Markup, text: str) -> tuple[tuple[Message, ...], tuple[str, ...]] | None:
    """Messages and notes, or None if the text is not written in this markup."""
    start = LEADING.match(text)
    offset = start.end() if start else 0
    if not candidate.stripped and candidate.header.match(text, offset) is None and candidate.opening is None:
        return None
    matches = list(candidate.header.finditer(text, 0 if candidate.stripped else offset))
    if not matches or (candidate.stripped and text[: matches[0].start()].strip()):
        return None
    roles = [CHAT_ROLES[m["role"].lower()] for m in matches]
    tail = text[matches[-1].end() :]
    if roles[-1] != "assistant" or GENERATION_PREFIX.fullmatch(tail) is None:
        return None
    if candidate.stripped and not alternates(roles):
        raise RowError("prompt text can be split in more than one way", f"headings found: {' '.join(roles)}"[:80])
    messages = []
    opening = text[offset : matches[0].start()]
    if candidate.opening and opening.strip():
        messages.append(Message(role=candidate.opening, content=opening.strip()))
    for match, following, role in zip(matches, matches[1:], roles, strict=False):
        content = candidate.end.sub("", text[match.end() : following.start()], count=1)
        messages.append(Message(role=role, content=content))
    messages = without_llama_dates(messages) if candidate.name in ("llama-3", "words-glued") else messages
    if not messages:
        return None
    return tuple(messages), (PREFIX_NOTE,) if tail.strip() else ()


def alternates(roles: list[str]) -> bool:
    """A leading system turn, then user and assistant in turn, ending with the assistant."""
    turns = roles[1:] if roles[0] == "system" else roles
    return len(turns) >= 2 and turns == ["user", "assistant"] * (len(turns) // 2)


def without_llama_dates(messages: list[Message]) -> list[Message]:
    """Without the dates that Llama-3's template writes into every system turn, and would write again."""
    if not messages or messages[0]["role"] != "system":
        return messages
    content = LLAMA_DATES.sub("", messages[0]["content"], count=1)
    return [Message(role="system", content=content), *messages[1:]] if content else messages[1:]


INST = re.compile(r"\[INST\](?P<user>.*?)\[/INST\](?P<reply>.*?)(?=(?:<s>)?\s*\[INST\]|\Z)", re.DOTALL)
LLAMA2_SYSTEM = re.compile(r"\s*<<SYS>>\n?(?P<system>.*?)\n?<</SYS>>\n*", re.DOTALL)
MISTRAL_SYSTEM = re.compile(r"\[SYSTEM_PROMPT\](?P<system>.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)


def split_inst(text: str) -> tuple[tuple[Message, ...], str]:
    """The ``[INST] … [/INST]`` markup of Mistral and Llama-2, with either way of giving a system turn."""
    messages: list[Message] = []
    start = LEADING.match(text)
    rest = text[start.end() if start else 0 :]
    if system := MISTRAL_SYSTEM.match(rest):
        messages.append(Message(role="system", content=system["system"].strip(" ")))
        rest = rest[system.end() :]
    turns = list(INST.finditer(rest))
    if not turns or rest[: turns[0].start()].strip() or turns[-1]["reply"].strip():
        raise RowError("prompt text does not end in [/INST]", "prompt_as='text' keeps such prompts as they are")
    for index, turn in enumerate(turns):
        user = turn["user"]
        if index == 0 and (system := LLAMA2_SYSTEM.match(user)):
            messages.append(Message(role="system", content=system["system"]))
            user = user[system.end() :]
        messages.append(Message(role="user", content=user.strip(" ")))
        if index < len(turns) - 1:
            messages.append(Message(role="assistant", content=turn["reply"].replace("</s>", "").strip(" ")))
    return tuple(messages), "inst"
