"""Where the peers stand in a finished context: its last message, cut at the headings that were written between them.

A context is kept as the teacher read it, as messages. To show who speaks where, the text is walked with the templates
that made it; a peer that stands there in full is recognised by its own words, so that a response that imitates a
heading does not move the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mopd.conditions import Condition
from mopd.contexts import SLOT, Block, Templates, blocks
from mopd.peers import Peer

__all__ = ["context_sections"]


def context_sections(
    text: str,
    condition: Condition,
    question: str,
    peers: Sequence[Peer],
    known: Mapping[str, str],
    templates: Templates,
) -> tuple[Block, ...]:
    """The blocks of a context's last message; joined by nothing they are the message.

    Args:
        text: the last message (or the plain-text context).
        condition: what was shown.
        question: the last message of the prompt as the student saw it.
        peers: as the context lists them.
        known: text of each peer by ``Peer.key``, as far as it is known; shortened peers stand there in part.
        templates: the wording.

    Returns:
        Blocks with the sections ``question``, a peer's role, and ``closing``; one block ``message`` where the text does
        not follow the templates.
    """
    whole = (Block(section="message", text=text),)
    if not condition.shell:
        return (Block(section="question", text=text),)
    expected = blocks(condition, question, peers, {p.key: known.get(p.key, SLOT) for p in peers}, templates)
    heads = blocks(condition, question, peers, {p.key: SLOT for p in peers}, templates)
    starts: list[int] = []
    at = 0
    for place, (block, head) in enumerate(zip(expected, heads, strict=True)):
        opening = templates.separator * bool(place) + head.text.split(SLOT)[0]
        closing = block.section == "closing"
        found = text.rfind(opening) if closing else text.find(opening, at)
        if found < at or (not place and found):
            return whole
        starts.append(found)
        full = templates.separator * bool(place) + block.text
        at = found + (len(full) if text.startswith(full, found) else len(opening))
    ends = [*starts[1:], len(text)]
    return tuple(
        Block(section=block.section, text=text[start:end], rollout_id=block.rollout_id)
        for block, start, end in zip(expected, starts, ends, strict=True)
    )
