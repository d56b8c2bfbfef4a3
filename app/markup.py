"""Contexts and their differences as safe HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from app.tokens_html import visible
from mopd.contexts import Block

__all__ = ["CONTEXT_CSS", "context_html", "difference_html", "facts_html", "plain"]

CONTEXT_CSS = """<style>
.cx { overflow-wrap: anywhere; font-size: 0.93rem; }
.cx-role { font-weight: 600; margin: 0.8rem 0 0.3rem; }
.cx-block { border-left: 5px solid rgba(128, 128, 128, 0.6); padding: 0.25rem 0.8rem; margin-bottom: 0.35rem; }
.cx-block pre, .cx-diff { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, monospace; font-size: 0.88rem; background: transparent; unicode-bidi: plaintext; }
.cx-tag { font-size: 0.82rem; font-weight: 600; opacity: 0.85; }
.cx-success { border-left: 5px solid rgb(31, 119, 220); background: rgba(31, 119, 220, 0.08); }
.cx-failure { border-left: 5px dashed rgb(230, 120, 10); background: rgba(230, 120, 10, 0.08); }
.cx-feedback { border-left: 5px dotted rgb(128, 90, 190); background: rgba(128, 90, 190, 0.08); }
.cx-diff ins { background: rgba(31, 119, 220, 0.25); text-decoration: underline; }
.cx-diff del { background: rgba(230, 120, 10, 0.25); text-decoration: line-through; }
</style>"""
_SIGNS = {"success": "shown as a success", "failure": "shown as a failure", "feedback": "feedback on it"}
_WORD = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 4000  # of a changed stretch that is compared word by word; above it goes by lines


def plain(text: str) -> str:
    """Text for a place that reads Markdown: every sign with a meaning is escaped, and line breaks are spaces."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:@/&])", r"\\\1", " ".join(text.split()))


def facts_html(facts: Mapping[str, object]) -> str:
    """Short facts side by side, each under its name; those that are None or "" are not known and left out."""
    items = "".join(
        f'<div><div style="font-size:.8rem;opacity:.75">{visible(name)}</div>'
        f'<div style="font-size:1.05rem;font-weight:600;overflow-wrap:anywhere">{visible(str(value))}</div></div>'
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.6rem 2rem;margin:.2rem 0 .6rem">{items}</div>'


def context_html(
    before: Sequence[Mapping[str, str]], role: str, sections: Sequence[Block], labels: Mapping[str, str]
) -> str:
    """The messages of a context: those before the last, then the last one's sections, peers marked by their role.

    Args:
        before: earlier messages, ``{role, content}``.
        role: of the last message.
        sections: of the last message.
        labels: what to call a rollout.
    """
    parts = [
        f'<div class="cx-role">{visible(m["role"])}</div><div class="cx-block"><pre dir="auto">{visible(m["content"])}'
        "</pre></div>"
        for m in before
    ]
    parts.append(f'<div class="cx-role">{visible(role)}</div>')
    for block in sections:
        who = labels.get(block.rollout_id or "", block.rollout_id or "")
        tag = f"{who}: {_SIGNS[block.section]}" if block.section in _SIGNS else block.section
        style = f" cx-{block.section}" if block.section in _SIGNS else ""
        parts.append(
            f'<div class="cx-block{style}"><div class="cx-tag">{visible(tag)}</div>'
            f'<pre dir="auto">{visible(block.text.strip())}</pre></div>'
        )
    return f'<div class="cx">{"".join(parts)}</div>'


def difference_html(first: str, second: str) -> str:
    """What to take out of the first text (struck through) and put in (underlined) to get the second."""
    parts: list[str] = []
    for tag, before, after in _changes(first.splitlines(keepends=True), second.splitlines(keepends=True)):
        if tag == "equal":
            parts.append(visible(before))
            continue
        old, new = _WORD.findall(before), _WORD.findall(after)
        small = len(old) + len(new) <= MOST_WORDS
        for kind, gone, come in _changes(old, new) if small else [(tag, before, after)]:
            if kind == "equal":
                parts.append(visible(gone))
                continue
            parts.append(f"<del>{visible(gone)}</del>" if gone else "")
            parts.append(f"<ins>{visible(come)}</ins>" if come else "")
    return f'<div class="cx-diff" dir="auto">{"".join(parts)}</div>'


def _changes(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str, str]]:
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return [(tag, "".join(first[a:b]), "".join(second[c:d])) for tag, a, b, c, d in matcher.get_opcodes()]
