"""Contexts as messages: the question, its peers under their headings, and the closing instruction.

Order (design section 4): question, first success, further successes, failures, feedback, closing instruction, unless
the condition orders its peers otherwise (``Condition.order``). All of it goes into the last user message, before the
chat template is applied, so nothing is ever put behind the assistant header (the released scripts append peers there).
Pure: no tokenizer is needed, see ``mopd.tokens`` for the budget.
"""

from __future__ import annotations

import dataclasses
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd.conditions import Condition
from mopd.peers import Peer
from mopd.rollouts import Message, Prompt, content_id

__all__ = ["Block", "Templates", "blocks", "render"]

SLOT = "{response}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Templates:
    """All wording that a context adds. ``{response}`` stands for the peer's text, once in each peer template.

    Attributes:
        first_success: the first successful peer.
        further_success: each successful peer after it.
        failure: each failed peer.
        summary: each peer that is shown as a summary.
        feedback: what the verifier said of a failed peer.
        closing: the last words before the teacher reads the target.
        separator: between blocks.
        cut_marker: put where a peer was shortened.
    """

    first_success: str = "A correct solution to this problem:\n\n{response}"
    further_success: str = "Another correct solution:\n\n{response}"
    failure: str = "A failed attempt whose mistakes should be avoided:\n\n{response}"
    summary: str = "A summary of a correct solution:\n\n{response}"
    feedback: str = "What was wrong with the failed attempt:\n\n{response}"
    closing: str = "Now give your own solution to the original problem."
    separator: str = "\n\n"
    cut_marker: str = "\n[... shortened ...]\n"

    def __post_init__(self) -> None:
        for name in ("first_success", "further_success", "failure", "summary", "feedback"):
            n = getattr(self, name).count(SLOT)
            if n != 1:
                raise ValueError(f"template {name!r} must hold {SLOT} exactly once, found it {n} times")

    @classmethod
    def from_toml(cls, path: str | Path) -> Templates:
        """Templates from the ``[templates]`` table of a TOML file; keys left out keep their default.

        Raises:
            ValueError: the file cannot be read, is not TOML, has no such table, or a key that is not a template.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("templates")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as TOML: {error}") from error
        except OSError as error:
            raise ValueError(
                f"templates {str(path)!r} cannot be read ({error.strerror or error}): give a TOML file with a "
                "[templates] table"
            ) from error
        if not isinstance(table, dict):
            raise ValueError(f"{path} has no [templates] table")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise ValueError(f"{path}: unknown templates {', '.join(unknown)}; known are {', '.join(known)}")
        wrong = sorted(name for name, value in table.items() if not isinstance(value, str))
        if wrong:
            raise ValueError(f"{path}: templates must be strings, which {', '.join(wrong)} is not")
        return cls(**table)

    @property
    def hash(self) -> str:
        """Content hash of the wording."""
        return content_id(dataclasses.asdict(self))

    @property
    def headings(self) -> tuple[str, ...]:
        """What stands before a peer, without the punctuation at its ends and without repeats; a single word, which any
        response may hold by chance, is left out."""
        named = (self.first_success, self.further_success, self.failure, self.summary, self.feedback)
        words = (_words(template.split(SLOT)[0]).strip(_ENDS) for template in named)
        return tuple(dict.fromkeys(heading for heading in words if " " in heading))

    def repeated_in(self, response: str) -> bool:
        """Whether a response holds a heading, word for word but for case and white space. A student that was never
        shown one and says it has learned the wording of the context instead of what it says."""
        text = _words(response)
        return any(re.search(rf"(?<!\w){re.escape(heading)}(?!\w)", text) for heading in self.headings)


_ENDS = string.punctuation + " "


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One piece of a context: ``section`` is question, a peer's role, or closing."""

    section: str
    text: str
    rollout_id: str | None = None


def blocks(
    condition: Condition, question: str, peers: Sequence[Peer], texts: Mapping[str, str], templates: Templates
) -> tuple[Block, ...]:
    """The pieces of a context in order.

    Args:
        condition: a condition with a shell; without one the question is the only piece.
        question: text of the last user message (or the plain-text prompt).
        peers: as chosen by a protocol, in the order in which they are shown.
        texts: what is shown of each peer, by ``Peer.key``.
        templates: the wording.
    """
    pieces = [Block(section="question", text=question)] if condition.show_question else []
    if not condition.shell:
        return tuple(pieces)
    successes = 0
    for peer in peers:
        successes += peer.role == "success"
        before, after = _template(condition, peer, successes, templates).split(SLOT)
        pieces.append(Block(section=peer.role, text=f"{before}{texts[peer.key]}{after}", rollout_id=peer.rollout_id))
    pieces.append(Block(section="closing", text=templates.closing))
    return tuple(pieces)


def _template(condition: Condition, peer: Peer, successes: int, templates: Templates) -> str:
    """The template of a peer, ``successes`` of whose kind have been shown with it."""
    if peer.role == "feedback":
        return templates.feedback
    if peer.role == "failure":
        return templates.failure
    if condition.shown == "summary":
        return templates.summary
    return templates.first_success if successes == 1 else templates.further_success


def render(
    condition: Condition,
    prompt: Prompt,
    peers: Sequence[Peer],
    texts: Mapping[str, str],
    templates: Templates,
) -> Prompt:
    """The context as the teacher reads it: messages for a chat prompt, text for a plain one.

    The prompt of a condition without a shell is returned as it came. One without the question keeps the system
    messages, which say how to answer, and no other turn.

    Raises:
        ValueError: the last message of a chat prompt is not the user's, so there is no place for the peers.
    """
    if not condition.shell:
        return prompt
    if isinstance(prompt, str):
        pieces = blocks(condition, prompt, peers, texts, templates)
        return templates.separator.join(piece.text for piece in pieces) + templates.separator
    if not prompt or prompt[-1]["role"] != "user":
        last = prompt[-1]["role"] if prompt else "nothing"
        raise ValueError(
            f"a prompt must end with a user message to take peers, but it ends with {last!r}; "
            "fold what follows the last user message into it"
        )
    pieces = blocks(condition, prompt[-1]["content"], peers, texts, templates)
    last_message = Message(role="user", content=templates.separator.join(piece.text for piece in pieces))
    before = prompt[:-1] if condition.show_question else [m for m in prompt[:-1] if m["role"] == "system"]
    return (*before, last_message)
