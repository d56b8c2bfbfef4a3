"""Choosing a target on the pages that look into one: its group, the rollout, and the comparison that it stands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import streamlit as st

from app import data, state
from app.lookup import group_words, rollout_words, unit_words

__all__ = ["Target", "choose_target"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Target:
    """A scored rollout and the rows of its group: those of ``assignments`` and ``scores`` are its own."""

    group_id: str
    rollout_id: str
    unit: str
    protocol: str
    rollouts: pl.DataFrame
    assignments: pl.DataFrame
    contexts: pl.DataFrame
    scores: pl.DataFrame
    names: dict[str, str]

    @property
    def conditions(self) -> list[str]:
        """Conditions under which it was scored in this comparison."""
        return self.assignments["condition"].unique(maintain_order=True).to_list()


def choose_target(study: data.Study) -> Target | None:
    """Boxes for protocol, group, rollout and comparison; None, with a plain line, where nothing was scored."""
    board = data.board(study)
    scored_groups = board.filter(pl.col("largest_delta").is_not_null())
    if scored_groups.is_empty():
        st.info("Nothing was scored in this folder: there is no token to look at.")
        return None
    boxes = st.columns([4, 2, 2.6, 1.6])
    words = group_words(board)
    options = scored_groups["group_id"].to_list()
    group_id = state.choice(boxes[0], "Group", options, "group", words=words)
    rollouts = data.group_rows(study, "rollouts", group_id)
    scores = data.group_rows(study, "scores", group_id)
    assignments = data.group_rows(study, "assignments", group_id).filter("supported")
    protocols = scores["protocol"].unique().sort().to_list()
    protocol = state.choice(boxes[3], "Protocol", protocols, "protocol", default="leave_pair_out")
    scores, assignments = (f.filter(pl.col("protocol") == protocol) for f in (scores, assignments))
    names = rollout_words(rollouts)
    with_scores = set(scores["rollout_id"])
    targets = [r for r in names if r in with_scores]
    rollout_id = state.choice(boxes[1], "Rollout", targets, "rollout", words=names)
    units = unit_words(assignments, rollout_id, names)
    unit = state.choice(boxes[2], "Comparison", list(units), "unit", words=units, help=UNIT_HELP)
    mine: Any = (pl.col("rollout_id") == rollout_id) & (pl.col("unit_id") == unit)
    return Target(
        group_id=group_id,
        rollout_id=rollout_id,
        unit=unit,
        protocol=protocol,
        rollouts=rollouts,
        assignments=assignments.filter(mine),
        contexts=data.group_rows(study, "contexts", group_id),
        scores=scores.filter(pl.col("rollout_id") == rollout_id),
        names=names,
    )


UNIT_HELP = "The peers in a context depend on which rollouts are compared under it."
