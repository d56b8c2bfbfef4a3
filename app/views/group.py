"""One group: its prompt, rollouts by conditions, the pairs that a condition got wrong, and who saw whom."""

from __future__ import annotations

import polars as pl
import streamlit as st

from analysis.charts import matrix_chart, saw_chart
from app import data, parts, state
from app.filters import filtered
from app.lookup import SIGNS, group_words, last_message, rollout_words
from app.markup import CONTEXT_CSS, context_html, facts_html
from mopd.browsing import pair_outcomes, score_matrix, who_saw_whom
from mopd.contexts import Block

VIEWS = {
    "matrix": "Rollouts by conditions",
    "pairs": "Pairs that a condition got wrong",
    "saw": "Who saw whom",
    "texts": "Rollouts in full",
}


def show(study: data.Study) -> None:
    board = data.board(study)
    if board.is_empty():
        st.info("This folder has no group of rollouts.")
        return
    group_id = choose_group(study, board)
    rollouts = data.group_rows(study, "rollouts", group_id)
    row = board.filter(pl.col("group_id") == group_id).row(0, named=True)
    facts = {
        "group": group_id,
        "task": row["task"],
        "successes": f"{row['n_success']} of {row['n_rollouts']}",
        "not judged": row["n_unjudged"] or None,
        "training step": row["step"],
        "sampled by": row["policy"],
        "flags": ", ".join(row["flags"]),
    }
    st.html(facts_html(facts))
    before, role, text = last_message(rollouts["prompt"].to_list()[0])
    with st.expander("Prompt", expanded=len(text) < 1500):
        st.html(CONTEXT_CSS + context_html(before, role, [Block(section="question", text=text)], {}))
    names = rollout_words(rollouts)
    scored = data.group_rows(study, "scores", group_id)
    views = VIEWS if not scored.is_empty() else {"texts": VIEWS["texts"]}
    if scored.is_empty():
        st.caption("Nothing of this group was scored: it takes no part in the comparison.")
    view = state.choice(st, "Show", list(views), "view", words=views)
    if view == "texts":
        texts(rollouts, names, scored)
        return
    assignments = data.group_rows(study, "assignments", group_id)
    boxes = st.columns(3)
    protocol = state.choice(boxes[0], "Protocol", scored["protocol"].unique().sort().to_list(), "protocol")
    scored, assignments = (f.filter(pl.col("protocol") == protocol) for f in (scored, assignments))
    if view == "matrix":
        matrix(scored, names, parts.choose_score(boxes[1]))
    elif view == "pairs":
        pairs(assignments, scored, names, parts.choose_score(boxes[1]), boxes[2])
    else:
        saw(assignments, data.group_rows(study, "contexts", group_id), names, boxes[2])


def choose_group(study: data.Study, board: pl.DataFrame) -> str:
    """The group of the URL, with next and previous in the order and filter of the board."""
    order = filtered(study)["group_id"].to_list()
    boxes = st.columns([4, 2.8], vertical_alignment="bottom")
    compared = board.filter(pl.col("largest_delta").is_not_null())["group_id"]
    group_id = state.choice(
        boxes[0],
        "Group",
        board["group_id"].to_list(),
        "group",
        default=compared[0] if len(compared) else None,
        words=group_words(board),
    )
    state.step(boxes[1].container(horizontal=True), order, "group", what="group", keys=("P", "N"))
    return group_id


def matrix(scored: pl.DataFrame, names: dict[str, str], score: str) -> None:
    rows = score_matrix(scored, score)
    st.caption(
        "Each cell is a rollout's score under a condition, averaged over its contexts. Click a cell to see its tokens."
    )
    drawn = matrix_chart(
        rows,
        rollouts={r: w for r, w in names.items() if r in set(rows["rollout_id"])},
        title=score,
        signed=score.startswith("delta"),
    )
    hit = parts.chart(drawn, "matrix", "matrix", select=True, alt_text=f"{score} of each rollout under each condition")
    if hit.get("rollout_id") in names:
        state.go("tokens", rollout=str(hit["rollout_id"]), condition=str(hit["condition"]), unit=None)
    with st.expander("The same as a table"):
        named = rows.with_columns(rollout=pl.col("rollout_id").replace(names))
        parts.table(named.select("rollout", pl.all().exclude("rollout", "protocol")), "matrix", "matrix values")


def pairs(assignments: pl.DataFrame, scored: pl.DataFrame, names: dict[str, str], score: str, box: object) -> None:
    rows = pair_outcomes(assignments, scored, score)
    conditions = ["all", *parts.condition_order(rows["condition"].to_list())]
    name = state.choice(box, "Condition", conditions, "only", default="all")
    rows = rows if name == "all" else rows.filter(pl.col("condition") == name)
    wrong = rows.filter(pl.col("outcome") != "right")
    st.caption(
        f"{wrong.height:,} of {rows.height:,} comparisons have the failure above the success, or level with it, by "
        f"{score}. Select a row to see both targets' tokens."
    )
    named = wrong.with_columns(success=pl.col("success_id").replace(names), failure=pl.col("failure_id").replace(names))
    columns = ["condition", "success", "failure", "success_score", "failure_score", "margin", "outcome"]
    number = st.column_config.NumberColumn
    event = parts.table(
        named.select(columns),
        "wrong-pairs",
        "wrong",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            c: number(f"{c.replace('_', ' ')} (nats)", format="%+.3f")
            for c in ("success_score", "failure_score", "margin")
        },
    )
    if event.selection.rows:
        row = wrong.row(event.selection.rows[0], named=True)
        state.go("tokens", rollout=row["failure_id"], unit=row["unit_id"], condition=row["condition"])


def saw(assignments: pl.DataFrame, contexts: pl.DataFrame, names: dict[str, str], box: object) -> None:
    rows = who_saw_whom(assignments, contexts)
    conditions = parts.condition_order(rows["condition"].to_list())
    if not conditions:
        st.caption("No condition of this study shows a peer in this group.")
        return
    name = parts.choose_condition(box, "Condition", conditions, default="2s1f")
    rows = rows.filter(pl.col("condition") == name)
    st.caption(
        "A line leads from a peer that the teacher was shown to a target that was scored in its sight. "
        "Solid and blue: shown as a success; dashed and orange: as a failure; the thicker, the more often."
    )
    parts.chart(saw_chart(rows, rollouts=names), "who-saw-whom", "saw", alt_text=f"who saw whom under {name}")
    with st.expander("The same as a table"):
        named = rows.with_columns(target=pl.col("target_id").replace(names), peer=pl.col("peer_id").replace(names))
        parts.table(named.select("target", "peer", "role", "n_units", "n_target_units"), "who-saw-whom", "saw values")


def texts(rollouts: pl.DataFrame, names: dict[str, str], scored: pl.DataFrame) -> None:
    labels = {True: SIGNS[True], False: SIGNS[False]}
    shown = rollouts.select(
        pl.col("rollout_id").replace(names).alias("rollout"),
        pl.col("success").replace_strict(labels, default=SIGNS[None], return_dtype=pl.String).alias("verifier"),
        "reward", "answer", "feedback", "finished", "response",
    )  # fmt: skip
    st.caption("Select a row to see its tokens.")
    event = parts.table(
        shown,
        "rollouts",
        "rollouts",
        on_select="rerun",
        selection_mode="single-row",
        row_height=60,
        column_config={
            "response": st.column_config.TextColumn("response", width="large"),
            "finished": "ended by itself",
        },
    )
    if event.selection.rows:
        rollout_id = rollouts["rollout_id"][event.selection.rows[0]]
        if not scored.is_empty() and rollout_id in set(scored["rollout_id"]):
            state.go("tokens", rollout=rollout_id, unit=None)
        st.text(rollouts["response"][event.selection.rows[0]])


parts.guarded("Group", show, "rollouts")
