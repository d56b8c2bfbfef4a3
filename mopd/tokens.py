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
        """Text of ids; IndexError or OverflowError for ids that are not of this tokenizer."""
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
        taken = sorted({"conversation", "tokenize", "add_generation_prompt", "return_dict"} & set(self.template_kwargs))
        if taken:
            raise ValueError(f"chat template options {', '.join(taken)} are mopd's to set; leave them out")
        self.end_id = self._end_of_turn()
        self.special_strings = tuple(sorted(self._control().values(), key=lambda s: (-len(s), s)))
        vocabulary = content_id(sorted(tokenizer.get_vocab().items()))
        template = getattr(tokenizer, "chat_template", None)
        # Some templates write the day's date: rendered, so that another day is another hash.
        probe = self.encode_prompt(({"role": "user", "content": "?"},)) if template else None
        self.hash = content_id(vocabulary, template, self.template_kwargs, probe)

    def _control(self) -> dict[int, str]:
        """Control tokens by id: the named ones, and those that are only marked special in the tokenizer's file.

        ``all_special_tokens`` alone lacks Qwen's ``<|im_start|>``, Llama's ``<|eot_id|>`` and Gemma's
        ``<end_of_turn>``.
        """
        marked = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        named = zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True)
        return marked | dict(named)

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
        control = self._control()
        return next((i for i in after if i in control), self.tokenizer.eos_token_id)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._encode_plain(prompt)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the prompts are chat messages but the tokenizer of {self.name!r} has no chat template; "
                "use an instruct model, or give the prompts as plain text"
            )
        from jinja2 import TemplateError  # comes with transformers

        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(m) for m in prompt],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **self.template_kwargs,
            )
        except TemplateError as error:  # such as Gemma's, which takes no system message
            roles = ", ".join(m["role"] for m in prompt)
            raise ValueError(
                f"the chat template of {self.name!r} refuses a prompt with the roles {roles}: {error}; "
                "bring the prompts into the form that the model was trained on"
            ) from error
        return list(ids)

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a plain-text prompt: one BOS where the model wants one, and no EOS, since the answer follows."""
        ids = list(self.tokenizer(text)["input_ids"])
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:  # the text brought its own
            ids = ids[1:]
        own = self.encode_text(text)[-1:] == [eos]
        if eos is not None and (ids[-2:] == [eos, eos] if own else ids[-1:] == [eos]):
            ids = ids[:-1]
        return ids

    def encode_text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        if max(ids, default=0) >= len(self.tokenizer):  # transformers decodes what it does not know to nothing
            raise IndexError(f"token {max(ids)} lies beyond the {len(self.tokenizer)} tokens of {self.name!r}")
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
        if not all(0 <= i <= self.END for i in ids):
            raise IndexError(f"ids must be from 0 to {self.END}, got {min(ids)} to {max(ids)}")
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseIds:
    """Ids of a response. ``exact``: as the sampler gave them, rather than tokenised from the text."""

    ids: tuple[int, ...]
    exact: bool


def response_ids(rollout: Rollout, codec: Codec) -> ResponseIds:
    """The tokens of a response that are scored.

    The sampler's ids are used if they decode to the response under this tokenizer; ids of another tokenizer do not,
    and the text is tokenised instead. Padding that a batch of samples left behind is taken off. If the rollout ended
    by itself, its end token is the last id: the sampler's own, or the template's where the ids have none.

    Raises:
        Refusal: the response is empty, or no ids decode to it.
    """
    if not rollout.response.strip():
        raise Refusal("empty_response", f"rollout {rollout.rollout_id} has an empty response")
    ids = rollout.response_ids
    exact = ids is not None and _decodes_to(ids, rollout.response, codec)
    if exact and ids is not None:
        ids = _unpadded(ids, rollout.finished, codec)
    else:
        ids = tuple(codec.encode_text(rollout.response))
        if not _decodes_to(ids, rollout.response, codec):
            raise Refusal(
                "undecodable_response",
                f"the tokens of rollout {rollout.rollout_id} do not decode to its response: the tokenizer changes it",
            )
    if rollout.finished and codec.end_id is not None and not _is_control(ids[-1], codec):
        ids = (*ids, codec.end_id)
    return ResponseIds(ids=tuple(ids), exact=exact)


def _is_control(token: int, codec: Codec) -> bool:
    return token == codec.end_id or codec.decode([token]) != codec.decode([token], skip_special=True)


def _unpadded(ids: Sequence[int], finished: bool | None, codec: Codec) -> tuple[int, ...]:
    """Of the control tokens at the end only the first can have been sampled; none if the length limit cut it."""
    last = len(ids)
    while last and _is_control(ids[last - 1], codec):
        last -= 1
    return tuple(ids[:last] if finished is False and last else ids[: last + 1])


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
    """A context that fits: its messages (or text), its ids, how many tokens its peers' own words have, and what was
    cut to make it fit."""

    context_id: str
    condition: str
    group_id: str
    peers: tuple[Peer, ...]
    messages: Prompt
    token_ids: Ids = field(repr=False)
    peer_tokens: int = 0
    cuts: tuple[Cut, ...] = ()


def fit_context(
    codec: Codec,
    group: Group,
    condition: Condition,
    peers: Sequence[Peer],
    *,
    templates: Templates,
    max_tokens: int | None,
    texts: Mapping[str, str] | None = None,
    max_peer_tokens: int | None = None,
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
        texts: what is shown of each peer, by ``Peer.key``; by default their responses.
        max_peer_tokens: most tokens that the peers' own words may have in all, for contexts matched in length; what
            goes over is always shortened.
        on_overflow: ``error`` refuses a context over the budget instead of shortening it.

    Raises:
        Refusal: the context cannot be brought under ``max_tokens``.
    """
    given = texts or {p.key: group.by_id[p.rollout_id].response for p in peers}
    texts = {p.key: _plain(given[p.key], codec) for p in peers}
    pieces = {key: codec.encode_text(text) for key, text in texts.items()}
    keep = {key: len(ids) for key, ids in pieces.items()}
    if max_peer_tokens is not None:
        keep = _level(keep, max(0, sum(keep.values()) - max_peer_tokens))

    def rendered() -> tuple[Prompt, list[int]]:
        shown = {
            key: _plain(_shorten(text, pieces[key], keep[key], codec, templates.cut_marker), codec)
            for key, text in texts.items()
        }
        messages = render(condition, group.prompt, peers, shown, templates)
        return messages, codec.encode_prompt(messages)

    messages, ids = rendered()
    while max_tokens is not None and len(ids) > max_tokens:
        if on_overflow == "error" or not any(keep.values()):
            reason = "" if on_overflow == "error" else ", even with no word of its peers"
            raise _overflow(condition, group, len(ids), max_tokens, reason)
        keep = _level(keep, len(ids) - max_tokens)
        messages, ids = rendered()
    cuts = tuple(
        Cut(section=f"{p.role}:{p.rollout_id}", tokens_removed=len(pieces[p.key]) - keep[p.key])
        for p in peers
        if keep[p.key] < len(pieces[p.key])
    )
    return FittedContext(
        context_id=content_id(condition.name, group.group_id, [[p.role, p.rollout_id] for p in peers], ids),
        condition=condition.name,
        group_id=group.group_id,
        peers=tuple(peers),
        messages=messages,
        token_ids=np.asarray(ids, dtype=np.int32),
        peer_tokens=sum(keep.values()),
        cuts=cuts,
    )


def _overflow(condition: Condition, group: Group, n: int, budget: int, reason: str) -> Refusal:
    where = f"the context {condition.name} of group {group.group_id}"
    return Refusal("context_overflow", f"{where} has {n} tokens, {n - budget} over the budget of {budget}{reason}")


def _plain(text: str, codec: Codec) -> str:
    """Text without control strings; again until none is left, as taking one out can put another together."""
    before = None
    while text != before:
        before = text
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
