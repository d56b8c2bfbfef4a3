"""Planted errors: one number, an exact label, and no copy among the peers."""

from __future__ import annotations

import polars as pl
import pytest

from mopd.conditions import condition
from mopd.equations import equations_in
from mopd.planted import plant, plant_errors, planted_protocol
from mopd.rollouts import Rollout, groups_of, validate_rollouts
from mopd.samples import load_sample


def rollout(response: str) -> Rollout:
    return Rollout(rollout_id="r", group_id="g", response=response, success=True)


def test_one_number_is_altered_and_the_checker_agrees() -> None:
    text = "First 3 + 4 = 7. Then 7 * 10 = 70, and 70 - 1.50 = 68.50 in all."
    planted = plant(rollout(text))
    assert planted is not None
    assert [e.holds for e in planted.steps] == [i != planted.wrong for i in range(3)]
    before, after = text.split(), planted.response.split()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert planted == plant(rollout(text))  # the same every time
    assert len({plant(rollout(text), seed).response for seed in range(20)}) > 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7",  # one step has nothing to be told from
        "3 + 4 = 7 and 2 + 2 = 5",  # not correct
        "no numbers at all",
        "1 + 1 = 4 - 2 and 2 + 1 = 4 - 1",  # no result that is one number
    ],
)
def test_what_cannot_be_altered_is_left(text: str) -> None:
    assert plant(rollout(text)) is None


def test_an_alteration_that_breaks_another_step_is_not_taken() -> None:
    # altering the 7 in the middle would make the next link of the chain false too, so the 2 is altered
    for seed in range(10):
        planted = plant(rollout("3 + 4 = 7 = 14 / 2. 1 + 1 = 2"), seed)
        assert planted is not None
        assert planted.wrong == 2


def test_the_form_of_the_number_is_kept() -> None:
    for seed in range(10):
        planted = plant(rollout("900 + 334 = 1,234 then 1 / 8 = 0.125"), seed)
        assert planted is not None
        end = planted.response.split("= ")
        assert "," in end[1].split()[0]
        assert len(end[2].split(".")[1]) == 3


def test_planted_rollouts_of_the_sample() -> None:
    sample = load_sample()
    errors = plant_errors(sample)
    assert plant_errors(sample).rollouts.equals(errors.rollouts)
    copies = errors.rollouts.filter(pl.col("source") == "planted")
    assert set(copies["rollout_id"]) == set(errors.of)
    assert copies["success"].to_list() == [False] * copies.height
    wrong = errors.steps.group_by("rollout_id").agg(pl.col("wrong").sum())
    assert wrong["wrong"].unique().to_list() == [1]
    originals = dict(sample.select("rollout_id", "response").iter_rows())
    for row in copies.rows(named=True):
        assert originals[errors.of[row["rollout_id"]]] != row["response"]
        assert [e.holds for e in equations_in(row["response"])].count(False) == 1
    validate_rollouts(errors.rollouts)


def test_original_and_copy_are_cut_into_tokens_alike() -> None:
    errors = plant_errors(load_sample())
    pair = pl.col("rollout_id").is_in([*errors.of, *errors.of.values()])
    assert errors.rollouts.filter(pair)["response_ids"].is_null().all()
    assert errors.rollouts.filter(~pair)["response_ids"].is_not_null().all()  # the others keep what was sampled


def test_no_copy_is_a_peer_and_no_peer_is_the_original() -> None:
    errors = plant_errors(load_sample())
    protocol = planted_protocol(errors.of)
    units = [
        (group, unit)
        for group in groups_of(errors.rollouts)
        for name in ("1s", "2s1f", "random_peer")
        for unit in protocol(group, condition(name), 0)
    ]
    shown = [(unit, peer) for _, unit in units for peer in unit.peers or ()]
    assert shown
    for unit, peer in shown:
        assert peer.rollout_id not in errors.of
        assert peer.rollout_id not in unit.targets
    assert {unit.targets for _, unit in units} == {(of, copy) for copy, of in errors.of.items()}


def test_rollouts_without_steps_are_refused() -> None:
    frame = validate_rollouts(
        pl.DataFrame({"group_id": ["g"] * 2, "prompt": ["?"] * 2, "response": ["yes", "no"], "reward": [1.0, 0.0]})
    )
    with pytest.raises(ValueError, match="no correct rollout has two equations"):
        plant_errors(frame)
