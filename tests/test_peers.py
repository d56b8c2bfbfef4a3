"""Protocols: who may be a peer of whom, over random groups and by hand."""

from __future__ import annotations

import dataclasses
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd import controls
from mopd.conditions import CONDITIONS, Condition, condition
from mopd.controls import Pool
from mopd.peers import (
    CONFOUNDED,
    PROTOCOLS,
    Assignment,
    Peer,
    choose_peers,
    leave_pair_out,
    normalise,
    self_exclusion,
    split,
    usable,
)
from mopd.rollouts import Group
from tests.helpers import make_group

# Few texts, some of which differ only in case, space or Unicode form, so that near-duplicates are common.
TEXTS = ("4", " 4 ", "Four", "four", "five", "six", "ﬁve", "", "seven\neight", "seven  eight")
RECIPES = [*CONDITIONS.values(), condition("3s"), condition("2s2f"), condition("summary_3")]
recipes = st.sampled_from(RECIPES)
protocols = st.sampled_from(sorted(PROTOCOLS))
seeds = st.integers(0, 2**32)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    rollouts = draw(st.lists(st.tuples(st.sampled_from("sf?"), st.sampled_from(TEXTS)), max_size=12))
    return make_group(
        "".join(label for label, _ in rollouts),
        responses=[text for _, text in rollouts],
        answer=[draw(st.sampled_from((None, "4", "5"))) for _ in rollouts],
        feedback=[draw(st.sampled_from((None, " ", "no"))) for _ in rollouts],
    )


# Says what targets say too, so that near-duplicates are banned across prompts as well; one success has its own text.
LENDER = make_group("sssffs", group_id="h", prompt="another", responses=["4", "five", "six", "seven", "six", "own"])


def assign(protocol: str, group: Group, recipe: Condition, seed: int = 0) -> list[Assignment]:
    return list(controls.assign(PROTOCOLS[protocol], group, recipe, seed, Pool([group, LENDER], seed)))


def texts_of(group: Group, ids: tuple[str, ...]) -> set[str]:
    return {normalise((group.by_id.get(i) or LENDER.by_id[i]).response) for i in ids}


@given(protocol=protocols, group=groups(), recipe=recipes, seed=seeds)
def test_no_target_and_no_near_duplicate_of_one_is_its_own_peer(
    protocol: str, group: Group, recipe: Condition, seed: int
) -> None:
    for a in assign(protocol, group, recipe, seed):
        shown = tuple(p.rollout_id for p in a.peers or ())
        assert not texts_of(group, shown) & texts_of(group, a.targets)


@given(protocol=protocols, group=groups(), recipe=recipes, seed=seeds)
def test_slots_are_filled_to_the_letter_or_not_at_all(
    protocol: str, group: Group, recipe: Condition, seed: int
) -> None:
    for a in assign(protocol, group, recipe, seed):
        if a.peers is None:
            continue
        by_id = LENDER.by_id if recipe.source == "other_prompt" else group.by_id
        peers = [p for p in a.peers if p.role != "feedback"]
        good, bad = ("success", "failure") if recipe.headings == "kept" else ("failure", "success")
        roles = [p.role for p in peers]
        if recipe.fallback and "success" not in roles:
            assert roles == ["failure"] * recipe.success_slots
        else:
            assert roles == [good] * recipe.success_slots + [bad] * recipe.failure_slots
        if recipe.choice == "label":
            assert all(by_id[p.rollout_id].success is (p.role == good) for p in peers)
        said = [p.rollout_id for p in a.peers if p.role == "feedback"]
        assert said == ([p.rollout_id for p in peers if p.role == "failure"] if recipe.feedback else [])
        assert all((by_id[i].feedback or "").strip() for i in said)
        shown = [normalise(by_id[p.rollout_id].response) for p in peers]
        assert len(set(shown)) == len(shown)  # two successes are two different ones
        assert "" not in shown


@given(group=groups(), recipe=recipes, seed=seeds)
def test_leave_pair_out_has_a_unit_for_each_pair_and_one_context_a_unit(
    group: Group, recipe: Condition, seed: int
) -> None:
    found = assign("leave_pair_out", group, recipe, seed)
    able = usable(group)
    pairs = product((r.rollout_id for r in able if r.success), (r.rollout_id for r in able if not r.success))
    assert sorted(a.targets for a in found) == sorted(pairs)
    assert len({a.unit_id for a in found}) == len(found)  # one assignment a unit: both targets share its peers


@given(group=groups(), recipe=recipes, seed=seeds)
def test_the_context_of_a_pair_does_not_know_which_of_the_two_succeeded(
    group: Group, recipe: Condition, seed: int
) -> None:
    for a in assign("leave_pair_out", group, recipe, seed):
        swap = {a.targets[0]: False, a.targets[1]: True}
        swapped = dataclasses.replace(
            group,
            rollouts=tuple(dataclasses.replace(r, success=swap.get(r.rollout_id, r.success)) for r in group.rollouts),
        )
        mirror = {frozenset(b.targets): b.peers for b in assign("leave_pair_out", swapped, recipe, seed)}
        assert mirror[frozenset(a.targets)] == a.peers


@given(protocol=protocols, group=groups(), first=recipes, second=recipes, seed=seeds)
def test_units_and_targets_do_not_depend_on_the_condition(
    protocol: str, group: Group, first: Condition, second: Condition, seed: int
) -> None:
    one, other = ([(a.unit_id, a.targets) for a in assign(protocol, group, c, seed)] for c in (first, second))
    assert one == other


@given(protocol=protocols, group=groups(), recipe=recipes, seed=seeds, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(
    protocol: str, group: Group, recipe: Condition, seed: int, shuffle: random.Random
) -> None:
    rollouts = list(group.rollouts)
    shuffle.shuffle(rollouts)
    other = dataclasses.replace(group, rollouts=tuple(rollouts))
    assert assign(protocol, other, recipe, seed) == assign(protocol, group, recipe, seed)


@given(group=groups(), recipe=recipes, seed=seeds)
def test_split_keeps_pool_and_targets_apart_whatever_the_labels(group: Group, recipe: Condition, seed: int) -> None:
    found = assign("split", group, recipe, seed)
    assert len({a.unit_id for a in found}) == len(found) <= 4
    everyone = {r.rollout_id for r in usable(group)}
    n_texts = len(texts_of(group, tuple(everyone)))
    for a in found:
        pool = everyone - set(a.targets)
        if recipe.source == "group":
            assert {p.rollout_id for p in a.peers or ()} <= pool
        assert not texts_of(group, tuple(pool)) & texts_of(group, a.targets)
        assert len(texts_of(group, a.targets)) == n_texts // 2
    flipped = dataclasses.replace(
        group,
        rollouts=tuple(
            dataclasses.replace(r, success=None if r.success is None else not r.success) for r in group.rollouts
        ),
    )
    assert [a.targets for a in assign("split", flipped, recipe, seed)] == [a.targets for a in found]


@given(group=groups(), recipe=recipes, seed=seeds)
def test_self_exclusion_is_one_unit_of_all(group: Group, recipe: Condition, seed: int) -> None:
    found = assign("self_exclusion", group, recipe, seed)
    assert {a.unit_id for a in found} <= {"group"}
    assert sorted(t for a in found for t in a.targets) == sorted(r.rollout_id for r in usable(group))


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_seeds_decide_the_order(protocol: str) -> None:
    group = make_group("ssssffff")
    drawn = {seed: assign(protocol, group, condition("2s1f"), seed) for seed in range(20)}
    assert drawn[3] == assign(protocol, group, condition("2s1f"), 3)
    # for the pair 0|4 alone: the first success and the second of 3, and a failure of 3: 3 * 2 * 3 = 18 choices
    choices = {tuple(p.rollout_id for p in a.peers or ()) for found in drawn.values() for a in found}
    assert len(choices) > 9


def test_every_peer_comes_first_about_equally_often() -> None:
    # design section 8.12: peers were always the lexicographically first. Pair 0|3, 1s: peer 1 or 2, each 1/2.
    group = make_group("sssf")
    first = [
        a.peers[0].rollout_id
        for seed in range(400)
        for a in leave_pair_out(group, condition("1s"), seed)
        if a.peers and a.targets == ("g-0", "g-3")
    ]
    # binomial(400, 1/2): standard deviation 10
    assert set(first) == {"g-1", "g-2"}
    assert abs(first.count("g-1") - 200) < 50


@given(protocol=protocols, group=groups(), seed=seeds)
def test_label_blind_peers_do_not_change_with_any_label(protocol: str, group: Group, seed: int) -> None:
    flipped = dataclasses.replace(
        group,
        rollouts=tuple(
            dataclasses.replace(r, success=None if r.success is None else not r.success) for r in group.rollouts
        ),
    )
    for name in ("question_only", "random_peer", "score_ordered"):
        one, other = (
            {frozenset(a.targets): a.peers for a in assign(protocol, g, condition(name), seed)}
            for g in (group, flipped)
        )
        if protocol != "split":
            assert one == other
        else:  # several splits may have the same targets
            assert set(one.items()) == set(other.items())


def test_groups_of_the_same_shape_are_not_ordered_alike() -> None:
    orders = set()
    for g in range(20):
        group = make_group("sssf", group_id=f"g{g}")
        found = {a.targets: a.peers for a in leave_pair_out(group, condition("1s"), 0)}
        peers = found[f"g{g}-0", f"g{g}-3"]
        assert peers is not None
        orders.add(peers[0].rollout_id[-1])
    assert orders == {"1", "2"}


def test_leave_pair_out_by_hand() -> None:
    # successes 0, 1, 2, where 2 says the same as 0; failures 3, 4
    group = make_group("sssff", responses=["a", "b", "A ", "x", "y"])
    peers = {a.targets: a.peers for a in leave_pair_out(group, condition("1s1f"), 0)}
    assert len(peers) == 6
    # without 0 (and so 2) and 3 there are 1 and 4
    expected = (Peer(rollout_id="g-1", role="success"), Peer(rollout_id="g-4", role="failure"))
    assert peers["g-0", "g-3"] == peers["g-2", "g-3"] == expected
    # without 1 and 3 there are 0 or its twin 2, and 4
    chosen = peers["g-1", "g-3"]
    assert chosen is not None
    assert chosen[0].rollout_id in {"g-0", "g-2"}
    assert chosen[1] == Peer(rollout_id="g-4", role="failure")


def test_twins_fill_one_slot() -> None:
    # without 0 and 4 there are the successes 1, 2, 3, of which 2 and 3 are twins: two different ones, not three
    group = make_group("ssssf", responses=["a", "b", "c", "C", "x"])
    filled = {a.targets: a.peers for a in leave_pair_out(group, condition("2s"), 0)}
    assert filled["g-0", "g-4"] is not None
    assert {a.peers for a in leave_pair_out(group, condition("3s"), 0)} == {None}


@pytest.mark.parametrize(
    ("labels", "name", "n_filled"),
    [
        # pairs of "ssff": 4, each leaves one success and one failure
        ("ssff", "question_only", 4),
        ("ssff", "1s1f", 4),
        ("ssff", "second_s", 0),
        ("ssff", "2s", 0),
        # pairs of "sssff": 6, each leaves two successes and one failure
        ("sssff", "2s1f", 6),
        # pairs of "sssf": 3, each leaves two successes and no failure
        ("sssf", "2s", 3),
        ("sssf", "1f", 0),
        ("sf", "shell_only", 1),
        ("sf", "1s", 0),
    ],
)
def test_how_many_pairs_a_condition_can_serve(labels: str, name: str, n_filled: int) -> None:
    found = list(leave_pair_out(make_group(labels), condition(name), 0))
    assert sum(a.peers is not None for a in found) == n_filled


def test_second_s_shows_what_comes_second_in_1s_order() -> None:
    group = make_group("sssssff")
    both = {a.targets: a.peers for a in leave_pair_out(group, condition("2s"), 5)}
    for a in leave_pair_out(group, condition("second_s"), 5):
        two = both[a.targets]
        assert two is not None
        assert a.peers == two[1:]


@pytest.mark.parametrize("labels", ["", "s", "ssss", "ffff", "????", "s?", "f?"])
def test_without_both_classes_there_is_no_pair(labels: str) -> None:
    assert list(leave_pair_out(make_group(labels), condition("question_only"), 0)) == []


def test_unjudged_and_empty_rollouts_take_no_part() -> None:
    group = make_group("ssff?", responses=["a", "  \n", "x", "", "z"])
    assert [r.rollout_id for r in usable(group)] == ["g-0", "g-2"]
    (pair,) = leave_pair_out(group, condition("question_only"), 0)
    assert pair.targets == ("g-0", "g-2")


def test_a_split_of_one_text_has_no_targets() -> None:
    assert list(split(make_group("sf", responses=["a", "A"]), condition("1s"), 0)) == []


def test_a_split_can_be_repeated_more_often() -> None:
    found = list(split(make_group("ssssffff"), condition("question_only"), 0, splits=9))
    assert [a.unit_id for a in found] == [f"split{r}" for r in range(9)]
    assert len({a.targets for a in found}) > 1


def test_self_exclusion_depends_on_the_own_label_and_says_so() -> None:
    # the failure sees both successes, a success sees the one that is not itself: the reason for "confounded"
    found = {a.targets[0]: a.peers for a in self_exclusion(make_group("ssf"), condition("2s"), 0)}
    assert found["g-0"] is None
    assert found["g-2"] is not None
    assert "self_exclusion" in CONFOUNDED
    assert not CONFOUNDED & {"leave_pair_out", "split"}


def test_choose_peers_takes_the_line_as_it_stands() -> None:
    group = make_group("fsfs", responses=["w", "a", "v", "b"])
    line = [(r, normalise(r.response)) for r in group.rollouts]
    chosen = choose_peers(condition("1s1f"), line, {"a"})
    assert chosen == (Peer(rollout_id="g-3", role="success"), Peer(rollout_id="g-0", role="failure"))
    assert choose_peers(condition("2s"), line, {"a"}) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The answer", "the  ANSWER\n"),
        ("ﬁve", "five"),  # a ligature
        ("x²", "x2"),
        ("Straße", "STRASSE"),
        ("a\u00a0b\tc", "a b c"),
    ],
)
def test_near_duplicates(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_texts_that_differ_in_a_sign_are_not_near_duplicates() -> None:
    assert len({normalise(t) for t in ("4", "-4", "4.", "4 4", "44")}) == 5


def test_pairs_of_ids_with_bars_have_names_of_their_own() -> None:
    group = make_group("ssff")
    names = ("a", "a|b", "b|c", "c")
    rollouts = tuple(dataclasses.replace(r, rollout_id=name) for r, name in zip(group.rollouts, names, strict=True))
    group = dataclasses.replace(group, rollouts=rollouts)
    found = {a.unit_id for a in leave_pair_out(group, condition("question_only"), 0)}
    assert len(found) == 4  # ("a", "b|c") and ("a|b", "c") would both be a|b|c without the escape
