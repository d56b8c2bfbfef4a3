"""Dose and order: grids, orders of blocks and the response surface."""

from __future__ import annotations

import polars as pl
import pytest

from mopd.conditions import CONDITIONS, Condition, condition, parse_conditions
from mopd.contexts import Templates, blocks
from mopd.contrasts import compared_pairs
from mopd.dose import SURFACE_TABLE, largest_grid, other_orders, surface_table, sweep
from mopd.peers import choose_peers, in_line, leave_pair_out
from tests.helpers import make_group


def test_a_sweep_is_the_whole_grid_under_canonical_names() -> None:
    names = sweep(3, 2)
    # 4 x 3 cells: shell_only is that of no peer
    assert set(names) == {"shell_only", "1f", "2f", "1s", "1s1f", "1s2f", "2s", "2s1f", "2s2f", "3s", "3s1f", "3s2f"}
    assert len(names) == 12
    assert sweep(1, 0) == ("shell_only", "1s")
    assert sweep(0, 1) == ("shell_only", "1f")


@pytest.mark.parametrize("size", [(0, 0), (-1, 2), (2, -1)])
def test_what_is_no_grid_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="sweep goes up to"):
        sweep(*size)


def test_other_orders_are_of_members_with_both_kinds() -> None:
    names = ["question_only", "1s", "1f", "2s1f", "1s2f", "random_peer", "success_only", "feedback", "2s1f_mixed"]
    assert other_orders(names, ["failures_first", "mixed"]) == (
        "2s1f_failures_first", "2s1f_mixed", "1s2f_failures_first", "1s2f_mixed",
    )  # fmt: skip
    assert other_orders(names, ()) == ()


def test_an_order_is_named_and_matched_to_the_usual_one() -> None:
    found = condition("2s1f_failures_first")
    assert (found.name, found.success_slots, found.failure_slots) == ("2s1f_failures_first", 2, 1)
    assert (found.order, found.control_of, found.of_family) == ("failures_first", "2s1f", False)
    assert found.label == "2 successes + 1 failure, failures first"
    assert condition("3s2f_mixed").label == "3 successes + 2 failures, in seeded order"
    assert CONDITIONS["2s1f"].order == "successes_first"
    assert [c.name for c in parse_conditions(["2s1f_mixed", "2s1f"])] == ["2s1f", "2s1f_mixed"]


@pytest.mark.parametrize("name", ["2s_mixed", "1f_failures_first"])
def test_an_order_needs_both_kinds(name: str) -> None:
    with pytest.raises(ValueError, match="takes a success and a failure slot"):
        condition(name)


def test_an_order_that_is_none_is_an_unknown_condition() -> None:
    with pytest.raises(ValueError, match="failures_first or _mixed"):
        condition("2s1f_backwards")


def test_an_order_changes_places_and_nothing_else() -> None:
    group = make_group("ssssffff")
    line = in_line(group, seed=3)
    usual = choose_peers(condition("2s2f"), line, ())
    first = choose_peers(condition("2s2f_failures_first"), line, ())
    mixed = choose_peers(condition("2s2f_mixed"), line, ())
    assert usual is not None
    assert first is not None
    assert mixed is not None
    assert [p.role for p in usual] == ["success", "success", "failure", "failure"]
    assert first == usual[2:] + usual[:2]
    assert set(mixed) == set(usual)
    place = {r.rollout_id: i for i, (r, _) in enumerate(line)}
    assert [place[p.rollout_id] for p in mixed] == sorted(place[p.rollout_id] for p in usual)


def test_mixed_starts_with_a_failure_about_as_often_as_with_a_success() -> None:
    starts = []
    for g in range(200):
        group = make_group("ssssffff", group_id=f"g{g}")
        peers = choose_peers(condition("1s1f_mixed"), in_line(group, seed=0), ())
        assert peers is not None
        starts.append(peers[0].role == "failure")
    assert 70 <= sum(starts) <= 130  # four standard deviations of a fair coin, 100 ± 28


def test_the_first_success_shown_has_the_first_heading_in_any_order() -> None:
    group = make_group("ssssffff")
    peers = choose_peers(condition("2s1f_failures_first"), in_line(group, 0), ())
    assert peers is not None
    texts = {p.key: group.by_id[p.rollout_id].response for p in peers}
    templates = Templates()
    found = blocks(condition("2s1f_failures_first"), "Q", peers, texts, templates)
    starts = [template.split("{response}")[0] for template in (
        templates.failure, templates.first_success, templates.further_success,
    )]  # fmt: skip
    assert [b.section for b in found] == ["question", "failure", "success", "success", "closing"]
    assert all(b.text.startswith(start) for b, start in zip(found[1:4], starts, strict=True))


def test_every_order_serves_the_same_pairs() -> None:
    group = make_group("sssff")
    for name in ("1s1f", "2s1f"):
        served = [
            [unit.peers is not None for unit in leave_pair_out(group, condition(c), 0)]
            for c in (name, f"{name}_failures_first", f"{name}_mixed")
        ]
        assert served[0] == served[1] == served[2]


def test_order_variants_are_contrasted_with_the_usual_order() -> None:
    pairs = compared_pairs(["1s1f", "1s1f_mixed", "2s1f_mixed", "question_only"], "question_only")
    assert ("1s1f_mixed", "1s1f", "rest") in pairs
    assert not any(a == "2s1f_mixed" and b == "2s1f" for a, b, _ in pairs)  # the usual order was not run


def test_the_largest_grid_is_what_a_group_can_fill_around_a_pair() -> None:
    # g: 4 successes and 3 failures leave 3 and 2 around a pair; h: 2 and 5 leave 1 and 4
    g, h = make_group("ssssfff"), make_group("ssfffff", group_id="h")
    assert largest_grid([g], 5, 5) == (3, 2)
    assert largest_grid([g], 2, 1) == (2, 1)
    assert largest_grid([g, h], 5, 5) == (3, 2)  # 4 x 3 cells against 2 x 5
    assert largest_grid([h], 5, 5) == (1, 4)
    assert largest_grid([make_group("sss")], 2, 2) == (0, 0)
    assert largest_grid([], 2, 2) == (0, 0)
    same = make_group("sssf", responses=["a", "A ", "b", "c"])  # two different successes
    assert largest_grid([same], 3, 1) == (1, 0)


def metric_rows(*names: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "task": "t",
            "condition": list(names),
            "protocol": "leave_pair_out",
            "score": "delta_mean",
            "metric": "auc",
            "value": [0.5 + i / 10 for i in range(len(names))],
            "ci_low": None,
            "ci_high": None,
            "n_groups": 3,
            "n_pairs": 9,
            "n_undefined": 0,
        },
        schema_overrides={"condition": pl.String, "value": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64},
    )


def test_the_surface_takes_the_cells_of_the_grid_and_leaves_the_rest() -> None:
    names = ("question_only", "second_s", "success_only", "summary_2", "2s1f_mixed", "2s1f", "1s", "shell_only", "3s2f")
    found = surface_table(metric_rows(*names))
    assert found.columns == list(SURFACE_TABLE)
    assert found.select("successes", "failures", "order", "value").rows() == [
        (0, 0, "successes_first", pytest.approx(1.2)),
        (1, 0, "successes_first", pytest.approx(1.1)),
        (2, 1, "successes_first", pytest.approx(1.0)),
        (3, 2, "successes_first", pytest.approx(1.3)),
        (2, 1, "mixed", pytest.approx(0.9)),
    ]


def test_a_study_without_a_cell_has_an_empty_surface() -> None:
    assert surface_table(metric_rows("question_only")).is_empty()
    assert surface_table(metric_rows()).is_empty()


def test_feedback_keeps_its_place_behind_the_failure() -> None:
    with pytest.raises(ValueError, match="no feedback"):
        Condition(name="x", success_slots=1, failure_slots=1, feedback=True, order="failures_first")
