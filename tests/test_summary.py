"""The summary of a rollout table."""

from __future__ import annotations

import polars as pl

from analysis.summary import can_fill_2s1f, summarise
from mopd.rollouts import ROLLOUT_SCHEMA, groups_of


def frame_of(labels: dict[str, list[tuple[str, bool | None]]]) -> pl.DataFrame:
    rows = [
        {
            "group_id": group,
            "rollout_id": f"{group}{index}",
            "task": group[0],
            "prompt": [{"role": "user", "content": "?"}],
            "response": text,
            "response_ids": [1, 2, 3] if index == 0 else None,
            "finished": index != 1,
            "success": success,
            "policy": "m",
            "step": 4,
        }
        for group, rollouts in labels.items()
        for index, (text, success) in enumerate(rollouts)
    ]
    return pl.DataFrame(rows, schema=ROLLOUT_SCHEMA, orient="row")


Rollouts = list[tuple[str, bool | None]]
FULL: Rollouts = [("a", True), ("b", True), ("c", True), ("x", False), ("y", False)]
SHORT: Rollouts = [("aaa", True), ("aaa", True), ("b", None)]


def test_summary_counts() -> None:
    summary = summarise(frame_of({"p1": FULL, "q1": SHORT}))
    overall, p, q = summary.tasks.to_dicts()
    assert (overall["groups"], overall["rollouts"], overall["unjudged"]) == (2, 8, 1)
    assert overall["success_rate"] == 5 / 7
    assert (overall["mixed"], overall["fillable"], overall["duplicates"], overall["cut"]) == (1, 1, 1, 2)
    assert overall["finished"] == 6
    assert (p["task"], p["success"], p["failure"], p["mixed"]) == ("p", 3, 2, 1)
    assert (q["task"], q["fillable"], q["characters"], q["tokens"]) == ("q", 0, 3.0, 3.0)
    assert summary.group_sizes.to_dicts() == [{"size": 3, "groups": 1}, {"size": 5, "groups": 1}]


def test_summary_renders_every_part() -> None:
    text = str(summarise(frame_of({"p1": FULL, "q1": SHORT})))
    for part in (
        "policy  m",
        "1 of 3 rollouts, 1 of 5 rollouts",
        "fill 2s1f",
        "pass@2",
        "self-BLEU",
        "groups  undefined",
    ):
        assert part in text, text


def test_summary_renders_a_column_for_each_task() -> None:
    lines = str(summarise(frame_of({"p1": FULL, "q1": SHORT}), k=[2])).splitlines()
    rows = {line.rsplit(None, 5)[0]: line.split()[-5:] for line in lines if line.startswith(("pass@2", "unique"))}
    # p: 3 of 5 succeed, 1 - C(2,2)/C(5,2) = 0.9; q: 2 of 2 judged succeed; each is one group, all: (0.9 + 1) / 2
    assert rows["pass@2"] == ["0.950", "0.900", "1", "2", "0"]
    # Judged texts of q: aaa twice, so 1 of 2 are distinct; all: (1 + 0.5) / 2
    assert rows["unique ratio"] == ["0.750", "1", "0.500", "2", "0"]
    one = str(summarise(frame_of({"p1": FULL}), k=[9])).splitlines()
    assert next(line.split() for line in one if line.startswith("pass@9")) == ["pass@9", "-", "0", "1"]


def fills(rollouts: Rollouts) -> bool:
    return can_fill_2s1f(next(groups_of(frame_of({"p": rollouts}))))


def test_copies_do_not_fill_slots() -> None:
    assert fills(FULL)
    assert not fills([("a", True), ("a ", True), ("c", True), ("x", False), ("y", False)])
    assert not fills([*FULL[:4], ("X", False)])
    assert not fills(FULL[1:])


def test_another_rule_can_be_given() -> None:
    assert summarise(frame_of({"p1": FULL}), can_fill=lambda group: False).tasks["fillable"].to_list() == [0]


def test_a_table_without_rows_is_summarised() -> None:
    assert summarise(frame_of({})).tasks["rollouts"].to_list() == [0]
    assert "not known" in summarise(frame_of({})).render()
