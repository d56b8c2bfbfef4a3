"""Finding things in a group's rows: what a rollout is called, who it is compared with, which context it was read in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.markup import plain
from mopd.conditions import condition
from mopd.contexts import Block, Templates
from mopd.peers import Peer
from mopd.sections import context_sections

__all__ = [
    "condition_words",
    "context_row",
    "group_words",
    "last_message",
    "rollout_words",
    "sections_of",
    "unit_words",
]

SIGNS = {True: "✓ success", False: "✗ failure", None: "? not judged"}


def condition_words(names: Sequence[str]) -> dict[str, str]:
    """Conditions with their labels; a name that this version does not know stands alone."""
    words = {}
    for name in names:
        try:
            label = condition(name).label
        except ValueError:
            label = ""
        words[name] = f"{name} ({label})" if label else name
    return words


def rollout_words(rollouts: pl.DataFrame) -> dict[str, str]:
    """A short name for each rollout of a group, in file order: its number and the verifier's label."""
    return {
        rollout_id: f"{number:02d} {SIGNS[success]}"
        for number, (rollout_id, success) in enumerate(rollouts.select("rollout_id", "success").iter_rows())
    }


def group_words(board: pl.DataFrame) -> dict[str, str]:
    """What to call each group: its number in the file and the beginning of its question."""
    return {
        group_id: f"{number:04d}  {' '.join((question or '').split())[:90]}"
        for number, (group_id, question) in enumerate(board.select("group_id", "question").iter_rows())
    }


def unit_words(assignments: pl.DataFrame, rollout_id: str, names: Mapping[str, str]) -> dict[str, str]:
    """The units in which a rollout was compared, called by the rollouts that it was compared with."""
    mine = assignments.filter(pl.col("rollout_id") == rollout_id)["unit_id"].unique(maintain_order=True)
    others = (
        assignments.filter(pl.col("unit_id").is_in(mine.to_list()) & (pl.col("rollout_id") != rollout_id))
        .group_by("unit_id")
        .agg(pl.col("rollout_id").unique())
    )
    against = dict(others.iter_rows())
    words = {}
    for unit in mine:
        with_whom = against.get(unit, [])
        alone = f"compared with {names.get(with_whom[0], with_whom[0])}" if len(with_whom) == 1 else ""
        words[unit] = alone or f"{unit}: compared with {len(with_whom)} others"
    return words


def context_row(
    assignments: pl.DataFrame, contexts: pl.DataFrame, condition: str, unit: str, rollout_id: str
) -> dict[str, Any] | None:
    """The row of ``contexts`` under which a rollout was scored in a unit; None if the condition could not be filled."""
    row = assignments.filter(
        (pl.col("condition") == condition) & (pl.col("unit_id") == unit) & (pl.col("rollout_id") == rollout_id)
    )
    found = contexts.filter(pl.col("context_id").is_in(row["context_id"].drop_nulls().to_list()))
    return found.row(0, named=True) if found.height else None


def last_message(prompt: str | Sequence[Mapping[str, str]]) -> tuple[list[Mapping[str, str]], str, str]:
    """The messages before the last, the last one's role and its text; a plain prompt is one text."""
    if isinstance(prompt, str):
        return [], "plain text", prompt
    messages = list(prompt)
    return (messages[:-1], messages[-1]["role"], messages[-1]["content"]) if messages else ([], "none", "")


def sections_of(context: Mapping[str, Any], rollouts: pl.DataFrame, wording: Mapping[str, str]) -> tuple[Block, ...]:
    """The last message of a context, cut where its peers begin and end."""
    text = last_message(context["messages"])[2]
    try:
        recipe = condition(context["condition"])
        templates = Templates(**wording)
    except (ValueError, TypeError):  # of another version
        return (Block(section="message", text=text),)
    known = {f"feedback:{r}": f for r, f in rollouts.select("rollout_id", "feedback").iter_rows() if f}
    known |= {r: t for r, t in rollouts.select("rollout_id", "response").iter_rows() if t}
    question = last_message(rollouts["prompt"].to_list()[0])[2]
    peers = [Peer(rollout_id=p["rollout_id"], role=p["role"]) for p in context["peers"]]
    return context_sections(text, recipe, question, peers, known, templates)


def cuts_words(context: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the budget took from the context's peers, as Markdown."""
    parts = []
    for cut in context["cuts"] or []:
        role, _, rollout_id = cut["section"].partition(":")
        parts.append(f"{cut['tokens_removed']} tokens of {plain(names.get(rollout_id, rollout_id))} ({plain(role)})")
    return "; ".join(parts)
