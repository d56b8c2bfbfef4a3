"""The shipped samples hold what the README beside them says."""

from __future__ import annotations

import pytest

from mopd.conditions import condition
from mopd.peers import leave_pair_out
from mopd.rollouts import ROLLOUT_SCHEMA, groups_of
from mopd.samples import SAMPLES, load_sample, sample_path


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_complete(name: str) -> None:
    frame = load_sample(name)
    assert list(frame.columns) == list(ROLLOUT_SCHEMA)
    for column in ("response_ids", "finished", "reward", "success", "policy", "sampling", "source", "task"):
        assert frame[column].null_count() == 0, column
    sizes = frame["group_id"].value_counts()["count"]
    assert sizes.min() == sizes.max() == {"arithmetic": 16, "domains": 8}[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_success_is_reward_of_at_least_one(name: str) -> None:
    frame = load_sample(name)
    assert frame["success"].to_list() == [reward >= 1.0 for reward in frame["reward"]]


def test_arithmetic_has_enough_groups_for_the_papers_best_condition() -> None:
    groups = list(groups_of(load_sample("arithmetic")))
    mixed = [g for g in groups if g.successes and g.failures]
    fills = [g for g in mixed if any(u.peers for u in leave_pair_out(g, condition("2s1f"), 0))]
    assert len(groups) >= 24
    assert len(mixed) >= 16
    assert len(fills) >= 12


def test_each_domain_has_enough_groups_for_the_papers_best_condition() -> None:
    groups = list(groups_of(load_sample("domains")))
    for task in ("math", "code", "science", "tools"):
        own = [g for g in groups if g.task == task]
        mixed = [g for g in own if g.successes and g.failures]
        fills = [g for g in mixed if any(u.peers for u in leave_pair_out(g, condition("2s1f"), 0))]
        assert len(own) >= 30
        assert len(mixed) >= 12
        assert len(fills) >= 8


def test_the_samples_are_small() -> None:
    assert sum(sample_path(name).stat().st_size for name in SAMPLES) < 3e6


@pytest.mark.parametrize(("name", "suite"), [("arithmetic", "arithmetic"), ("domains", "all")])
def test_sample_was_judged_by_the_verifiers_of_its_suites(name: str, suite: str) -> None:
    from mopd import tasks
    from mopd.verifiers import verify_many

    frame = load_sample(name)
    items = {(item.task, item.item_id): item for item in tasks.load(suite)}
    picked = frame.gather_every(17)
    asked = [items[task, group_id.split("@")[0]] for task, group_id in picked.select("task", "group_id").iter_rows()]
    prompts = [[dict(m) for m in item.prompt] for item in asked]  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert picked["prompt"].to_list() == prompts
    verdicts = verify_many(
        [(item.verifier, text, item.reference) for item, text in zip(asked, picked["response"], strict=True)]
    )
    assert [v.reward for v in verdicts] == picked["reward"].to_list()


def test_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown sample 'geometry'; known samples: arithmetic, domains"):
        sample_path("geometry")
