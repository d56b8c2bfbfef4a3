"""From messages to token ids: chat template, budget, response span.

The chat template is applied once to finished messages and the response ids are put after it (design section 7): no
text is joined behind an assistant header, no second BOS is added, and no seam is tokenised again. What the teacher is
asked about is checked: the response ids must decode to the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mopd.conditions import Condition
from mopd.contexts import Templates, render
from mopd.peers import Peer
from mopd.rollouts import Group, Prompt, Rollout, content_id

__all__ = [
    "ByteCodec",
    "Codec",
    "Cut",
    "FittedContext",
    "HFCodec",
    "Refusal",
    "ResponseIds",
    "fit_context",
    "response_ids",
]

Ids = NDArray[np.int32]


class Refusal(Exception):
    """A context or a response cannot be scored; ``reason`` is the word under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Codec(Protocol):
    """What contexts need of a tokenizer."""

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer, or None."""
        ...

    @property
    def special_strings(self) -> tuple[str, ...]:
        """Strings that the tokenizer reads as control tokens."""
        ...

    @property
    def hash(self) -> str:
        """Content hash of vocabulary, template and flags."""
        ...

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt up to where the answer begins, with whatever the model wants before it."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Ids of a piece of text, with nothing added."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ids."""
        ...


class HFCodec:
    """A tokenizer of transformers.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``.
        name: how messages name the model.
        template_kwargs: handed through to the chat template, such as ``{"enable_thinking": False}``.
    """

    def __init__(self, tokenizer: Any, *, name: str = "", template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = name or getattr(tokenizer, "name_or_path", "")
        self.template_kwargs = dict(template_kwargs or {})
        self.end_id = self._end_of_turn()
        self.special_strings = tuple(sorted(set(tokenizer.all_special_tokens), key=len, reverse=True))
        vocabulary = content_id(sorted(tokenizer.get_vocab().items()))
        self.hash = content_id(vocabulary, getattr(tokenizer, "chat_template", None), self.template_kwargs)

    def _end_of_turn(self) -> int | None:
        """The control token that the chat template puts after an answer; the tokenizer's EOS without a template.

        They differ for some families: Gemma's EOS is ``<eos>``, its turns end with ``<end_of_turn>``.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            return self.tokenizer.eos_token_id
        mark = "mopd"
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, **self.template_kwargs)
        after = self.tokenizer(text[text.rindex(mark) + len(mark) :], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return next((i for i in after if i in special), self.tokenizer.eos_token_id)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the prompts are chat messages but the tokenizer of {self.name!r} has no chat template; "
                "use an instruct model, or give the prompts as plain text"
            )
        return list(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in prompt],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **self.template_kwargs,
            )
        )

    def encode_text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)


class ByteCodec:
    """A tokenizer without a vocabulary file: UTF-8 bytes, and a chat markup of four control tokens.

    It lets scripted teachers run a whole study with no model at hand. Ids 0-255 are bytes; 256 begins a turn, 257
    ends its role, 258 ends the turn, which also ends an answer.
    """

    TURN, ROLE_END, END = 256, 257, 258
    end_id = END
    special_strings: tuple[str, ...] = ()
    hash = "bytes-1"

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.encode_text(prompt)
        ids: list[int] = []
        for message in prompt:
            ids += [self.TURN, *self.encode_text(message["role"]), self.ROLE_END]
            ids += [*self.encode_text(message["content"]), self.END]
        return [*ids, self.TURN, *self.encode_text("assistant"), self.ROLE_END]

    def encode_text(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseIds:
    """Ids of a response. ``exact``: as the sampler gave them, rather than tokenised from the text."""

    ids: tuple[int, ...]
    exact: bool


def response_ids(rollout: Rollout, codec: Codec) -> ResponseIds:
    """The tokens of a response that are scored.

    The sampler's ids are used if they decode to the response under this tokenizer; ids of another tokenizer do not,
    and the text is tokenised instead. If the rollout ended by itself, its end token is the last id.

    Raises:
        Refusal: the response is empty, or no ids decode to it.
    """
    if not rollout.response.strip():
        raise Refusal("empty_response", f"rollout {rollout.rollout_id} has an empty response")
    ids = rollout.response_ids
    exact = ids is not None and _decodes_to(ids, rollout.response, codec)
    if ids is None or not exact:
        ids = tuple(codec.encode_text(rollout.response))
        if not _decodes_to(ids, rollout.response, codec):
            raise Refusal(
                "undecodable_response",
                f"the tokens of rollout {rollout.rollout_id} do not decode to its response: the tokenizer changes it",
            )
        if rollout.finished and codec.end_id is not None:
            ids = (*ids, codec.end_id)
    return ResponseIds(ids=tuple(ids), exact=exact)


def _decodes_to(ids: Sequence[int], text: str, codec: Codec) -> bool:
    if not ids:
        return False
    try:
        whole = codec.decode(ids)
        if text == whole or text == codec.decode(ids, skip_special=True):
            return True
    except (IndexError, OverflowError, KeyError, TypeError):  # ids beyond this tokenizer's vocabulary
        return False
    # The end token stands in the ids but not always in the text.
    return codec.end_id is not None and ids[-1] == codec.end_id and text == codec.decode(ids[:-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What the budget took from a peer; ``section`` is its role and id."""

    section: str
    tokens_removed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedContext:
    """A context that fits: its messages (or text), its ids, and what was cut to make it fit."""

    context_id: str
    condition: str
    group_id: str
    peers: tuple[Peer, ...]
    messages: Prompt
    token_ids: Ids = field(repr=False)
    cuts: tuple[Cut, ...] = ()


def fit_context(
    codec: Codec,
    group: Group,
    condition: Condition,
    peers: Sequence[Peer],
    *,
    templates: Templates,
    max_tokens: int | None,
    on_overflow: Literal["shorten", "error"] = "shorten",
) -> FittedContext:
    """Render a context and bring it under its budget.

    Peers are shortened in their middle, the longest first, down to a common length; the question, the headings and
    the assistant header never are. Control-token strings inside a peer's text (a model can write ``<|im_end|>``) are
    taken out, since they would end the teacher's turn; the question is left as the student saw it.

    Args:
        codec: the teacher's tokenizer.
        group: where question and peers come from.
        condition: what is shown.
        peers: as a protocol chose them.
        templates: the wording.
        max_tokens: most tokens that the context may have, assistant header included; None for no limit.
        on_overflow: ``error`` refuses a context over the budget instead of shortening it.

    Raises:
        Refusal: the context cannot be brought under ``max_tokens``.
    """
    texts = {p.rollout_id: _plain(group.by_id[p.rollout_id].response, codec) for p in peers}
    pieces = {rollout_id: codec.encode_text(text) for rollout_id, text in texts.items()}
    keep = {rollout_id: len(ids) for rollout_id, ids in pieces.items()}
    while True:
        shown = {
            rollout_id: _shorten(text, pieces[rollout_id], keep[rollout_id], codec, templates.cut_marker)
            for rollout_id, text in texts.items()
        }
        messages = render(condition, group.prompt, peers, shown, templates)
        ids = codec.encode_prompt(messages)
        excess = 0 if max_tokens is None else len(ids) - max_tokens
        if excess <= 0:
            break
        if on_overflow == "error" or not any(keep.values()):
            raise Refusal(
                "context_overflow",
                f"the context {condition.name} of group {group.group_id} has {len(ids)} tokens, "
                f"{excess} over the budget of {max_tokens}"
                + (", even with no word of its peers" if on_overflow == "shorten" else ""),
            )
        keep = _level(keep, excess)
    cuts = tuple(
        Cut(section=f"{p.role}:{p.rollout_id}", tokens_removed=len(pieces[p.rollout_id]) - keep[p.rollout_id])
        for p in peers
        if keep[p.rollout_id] < len(pieces[p.rollout_id])
    )
    return FittedContext(
        context_id=content_id(condition.name, group.group_id, [[p.role, p.rollout_id] for p in peers], ids),
        condition=condition.name,
        group_id=group.group_id,
        peers=tuple(peers),
        messages=messages,
        token_ids=np.asarray(ids, dtype=np.int32),
        cuts=cuts,
    )


def _plain(text: str, codec: Codec) -> str:
    for special in codec.special_strings:
        text = text.replace(special, "")
    return text


def _shorten(text: str, ids: Sequence[int], keep: int, codec: Codec, marker: str) -> str:
    """The text, or its head and tail of ``keep`` tokens in all with the marker between them."""
    if keep >= len(ids):
        return text
    tail = keep // 2
    head = keep - tail
    return codec.decode(ids[:head]) + marker + (codec.decode(ids[len(ids) - tail :]) if tail else "")


def _level(keep: Mapping[str, int], excess: int) -> dict[str, int]:
    """Take ``excess`` tokens away, always from the longest; all of them if that is not enough."""
    left = dict(keep)
    for _ in range(min(excess, sum(left.values()))):
        longest = max(left, key=lambda rollout_id: (left[rollout_id], rollout_id))
        left[longest] -= 1
    return left
