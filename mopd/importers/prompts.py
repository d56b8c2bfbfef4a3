"""From a record's prompt to the prompt of a rollout, by the user's choice of messages or text."""

from __future__ import annotations

from mopd.importers.base import PromptAs, RowError
from mopd.importers.markup import split_prompt
from mopd.importers.values import as_messages, as_text, has_messages
from mopd.rollouts import Message

__all__ = ["as_prompt", "as_question"]


def as_prompt(value: object, name: str, prompt_as: PromptAs) -> tuple[tuple[Message, ...] | str, tuple[str, ...]]:
    """A prompt that is either messages or *rendered* text, and notes on how it was read.

    Messages cannot become text here: only the model's own chat template may render them.
    """
    if has_messages(value):
        if prompt_as == "text":
            raise RowError("prompt is chat messages, not text", "import it with prompt_as='messages'")
        return ending_in_question(as_messages(value, name)), ()
    text = as_text(value, name)
    if prompt_as == "text":
        return text, ()
    messages, markup, notes = split_prompt(text)
    return messages, (f"prompt text was split as {markup}", *notes)


def as_question(value: object, name: str, prompt_as: PromptAs) -> tuple[tuple[Message, ...] | str, tuple[str, ...]]:
    """Like ``as_prompt``, for tools that send a plain text as one user message."""
    if isinstance(value, str) and prompt_as == "messages":
        return (Message(role="user", content=as_text(value, name)),), ()
    return as_prompt(value, name, prompt_as)


def ending_in_question(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Refuses a prompt that ends in an assistant's words: what follows would continue it, not answer it."""
    if messages[-1]["role"] == "assistant":
        raise RowError("prompt ends in an assistant message", "prefilled answers are not supported")
    return messages
