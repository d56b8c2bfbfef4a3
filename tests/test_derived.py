"""Derived quantities by hand."""

from __future__ import annotations

import polars as pl
import pytest

from mopd.conditions import CONDITIONS
from mopd.derived import DERIVED_TABLE, QUANTITIES, derived_table

# (group, unit, target, success): one pair in a, two in b that share the success
TARGETS = [("a", "u", "a0", True), ("a", "u", "a1", False)] + [
    ("b", unit, target, success)
    for unit, target, success in (("u", "b0", True), ("u", "b1", False), ("v", "b0", True), ("v", "b2", False))
]


def scored(**delta_by_condition: list[float]) -> pl.DataFrame:
    rows = [
        {
            "task": "t",
            "protocol": "leave_pair_out",
            "condition": name,
            "group_id": group,
            "unit_id": unit,
            "rollout_id": target,
            "success": success,
            "delta_mean": value,
            "delta_sum": 10 * value,
            "teacher_mean": value - 1,
        }
        for name, values in delta_by_condition.items()
        for (group, unit, target, success), value in zip(TARGETS, values, strict=True)
    ]
    return pl.DataFrame(rows)


def test_specificity_by_hand() -> None:
    table = derived_table(
        scored(**{"2s1f": [5.0, 1.0, 3.0, 1.0, 5.0, 2.0], "other_prompt": [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]})
    )
    assert dict(table.schema) == DERIVED_TABLE
    values = {(r["score"], r["targets"]): r["value"] for r in table.iter_rows(named=True)}
    # differences: a: 4 and 0; b: b0 (2 + 4) / 2 = 3, b1 1, b2 1
    assert values["delta_mean", "success"] == pytest.approx((4 + 3) / 2)
    assert values["delta_mean", "failure"] == pytest.approx((0 + 1) / 2)
    assert values["delta_mean", "success - failure"] == pytest.approx((4 + 2) / 2)
    assert values["delta_sum", "success - failure"] == pytest.approx(30)
    assert set(table["quantity"]) == {"specificity"}
    assert table["n_groups"].unique().to_list() == [2]
    row = table.filter((pl.col("targets") == "success") & (pl.col("score") == "delta_mean")).row(0, named=True)
    assert row["ci_low"] is None  # two groups are too few
    assert row["ci_high"] is None


def test_shell_effect_and_copy_component_need_one_condition() -> None:
    table = derived_table(scored(shell_only=[1.0, 2.0, 3.0, 4.0, 3.0, 4.0], peers_only=[0.0] * 6))
    values = {(r["quantity"], r["score"], r["targets"]): r["value"] for r in table.iter_rows(named=True)}
    assert values["shell_effect", "delta_mean", "success"] == pytest.approx((1 + 3) / 2)
    assert values["copy_component", "teacher_mean", "failure"] == -1.0
    assert {q for q, _, _ in values} == {"shell_effect", "copy_component"}


def test_tasks_are_pooled_and_few_groups_have_no_interval() -> None:
    one = scored(shell_only=[1.0, 2.0, 3.0, 4.0, 3.0, 4.0])
    six = [one.with_columns(group_id=pl.col("group_id") + str(i)) for i in range(3)]
    table = derived_table(pl.concat([*six, one.filter(pl.col("group_id") == "a").with_columns(task=pl.lit("s"))]))
    table = table.filter((pl.col("score") == "delta_mean") & (pl.col("targets") == "success"))
    assert table.select("task", "value", "n_groups").rows() == [
        ("all", pytest.approx((3 * (1 + 3) + 1) / 7), 7),
        ("s", 1.0, 1),
        ("t", 2.0, 6),
    ]
    assert table["ci_low"].is_null().to_list() == [False, True, False]


def test_nothing_was_run() -> None:
    assert derived_table(scored(question_only=[0.0] * 6)).schema == pl.Schema(DERIVED_TABLE)


def test_quantities_name_conditions_that_are_there() -> None:
    for quantity in QUANTITIES.values():
        assert {quantity.condition, quantity.minus} - {None} <= set(CONDITIONS)
