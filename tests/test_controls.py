"""Controls: what differs from ``2s1f`` and what does not, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.conditions import CONTROLS, condition
from mopd.contexts import Templates, render
from mopd.controls import Pool, assign, excerpt, shown_texts, shuffle_words, summary_of
from mopd.peers import Peer, leave_pair_out
from mopd.planning import Planner
from mopd.rollouts import Group, Message
from mopd.tokens import ByteCodec
from tests.helpers import make_group

WORDS = Templates(
    first_success="FIRST {response}",
    further_success="NEXT {response}",
    failure="WRONG {response}",
    summary="SUMMARY {response}",
    feedback="SAID {response}",
    closing="NOW",
    separator="|",
)


def peers_of(name: str, group: Group, targets: tuple[str, str], pool: Pool | None = None) -> tuple[Peer, ...] | None:
    found = {a.targets: a.peers for a in assign(leave_pair_out, group, condition(name), 0, pool)}
    return found[targets]


def roles_and_ids(peers: tuple[Peer, ...] | None) -> list[tuple[str, str]]:
    assert peers is not None
    return [(p.role, p.rollout_id[-1]) for p in peers]


def test_label_swapped_shows_the_peers_of_2s1f_in_their_places_under_the_other_headings() -> None:
    group = make_group("sssff")
    true, swapped = (roles_and_ids(peers_of(n, group, ("g-0", "g-3"))) for n in ("2s1f", "label_swapped"))
    assert [role for role, _ in true] == ["success", "success", "failure"]
    assert [role for role, _ in swapped] == ["failure", "failure", "success"]
    assert [i for _, i in true] == [i for _, i in swapped]


def test_random_peer_ignores_labels() -> None:
    # without 0 and 4 there are the three successes 1, 2, 3: no failure for 2s1f, but three peers
    group = make_group("ssssf")
    assert peers_of("2s1f", group, ("g-0", "g-4")) is None
    found = roles_and_ids(peers_of("random_peer", group, ("g-0", "g-4")))
    assert [role for role, _ in found] == ["success", "success", "failure"]
    assert {i for _, i in found} == {"1", "2", "3"}
    assert peers_of("random_peer", make_group("sssf"), ("g-0", "g-3")) is None  # two others only


def test_random_peer_shows_successes_at_their_share_of_the_others() -> None:
    # without 0 and 6 there are 3 successes and 3 failures: the first slot holds a success half of the time
    group = make_group("ssssffff")
    first = []
    for seed in range(400):
        found = {a.targets: a.peers for a in leave_pair_out(group, condition("random_peer"), seed)}
        peers = found["g-0", "g-6"]
        assert peers is not None
        first.append(group.by_id[peers[0].rollout_id].success)
    assert abs(sum(map(bool, first)) - 200) < 50  # binomial(400, 1/2): standard deviation 10


def test_score_ordered_takes_the_most_and_the_least_agreed_answer() -> None:
    # without 0 and 5: answers 7 (of 1, 2, 3), 8 (of 4), none (of 6). The most agreed are two of 1, 2, 3, the least is 4
    group = make_group("ssfffff", answer=["7", "7", "7", " 7 ", "8", "9", None])
    found = roles_and_ids(peers_of("score_ordered", group, ("g-0", "g-5")))
    assert [role for role, _ in found] == ["success", "success", "failure"]
    assert {i for _, i in found[:2]} < {"1", "2", "3"}
    assert found[2][1] == "4"
    # 1, 4 and 6, of which 6 has no answer, and so two candidates for three slots
    short = make_group("ssfffff", answer=["7", "7", None, "", "8", "9", " "])
    assert peers_of("score_ordered", short, ("g-0", "g-5")) is None


def test_other_prompt_borrows_from_the_next_group_that_can_lend() -> None:
    one, same = make_group("ssff"), make_group("ssff", group_id="same")  # the same prompt, as at another step
    poor = make_group("sf", group_id="poor", prompt="q2")
    rich = make_group("ssf", group_id="rich", prompt="q3", responses=["x", "y", "z"])
    pool = Pool([one, same, poor, rich])
    for a in assign(leave_pair_out, one, condition("other_prompt"), 0, pool):
        assert a.peers is not None
        assert {p.rollout_id for p in a.peers} == {"rich-0", "rich-1", "rich-2"}
        assert [(p.role == "success") == rich.by_id[p.rollout_id].success for p in a.peers] == [True] * 3
    # what a target says is not shown to it, from whichever prompt it comes
    twin = make_group("sf", responses=["X", "w"])
    found = {a.targets: a.peers for a in assign(leave_pair_out, twin, condition("other_prompt"), 0, pool)}
    assert found["g-0", "g-1"] is None  # of rich are left one success and one failure
    assert next(assign(leave_pair_out, one, condition("other_prompt"), 0, Pool([one, same, poor]))).peers is None


def test_every_group_lends_about_as_often() -> None:
    groups = [
        make_group("ssff", group_id=f"g{i}", prompt=f"q{i}", responses=[f"{i} {letter}" for letter in "abcd"])
        for i in range(30)
    ]
    pool = Pool(groups, seed=3)
    lenders = []
    for group in groups:
        unit = next(assign(leave_pair_out, group, condition("other_prompt"), 3, pool))
        assert unit.peers is not None
        lenders.append(unit.peers[0].rollout_id.split("-")[0])
    assert len(set(lenders)) == 30


def test_a_groups_place_on_the_ring_is_looked_up_and_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [
        make_group("ssff", group_id=f"g{i}", prompt=f"q{i}", responses=[f"{i} {letter}" for letter in "abcd"])
        for i in range(40)
    ]
    placed, place = [], Pool._place

    def counted(pool: Pool, group: Group) -> str:
        placed.append(group.group_id)
        return place(pool, group)

    monkeypatch.setattr(Pool, "_place", counted)
    pool = Pool(groups)
    units = [list(assign(leave_pair_out, group, condition("other_prompt"), 0, pool)) for group in groups]
    # once a group for the ring, once for its lenders, once for each of four pairs; a search would take 40 a pair
    assert len(placed) <= (2 + 4) * 40
    assert all(unit.peers is not None for found in units for unit in found)


def test_feedback_follows_its_failure() -> None:
    group = make_group("sfff", feedback=[None, "a", None, "expected 4"])
    # without 0 and 1, of 2 and 3 only 3 has feedback
    assert roles_and_ids(peers_of("feedback", group, ("g-0", "g-1"))) == [("failure", "3"), ("feedback", "3")]
    peers = peers_of("feedback", group, ("g-0", "g-1"))
    assert peers is not None
    texts = shown_texts(condition("feedback"), peers, group.by_id)
    assert texts == {"g-3": "attempt 3", "feedback:g-3": "expected 4"}
    assert render(condition("feedback"), "q", peers, texts, WORDS) == "q|WRONG attempt 3|SAID expected 4|NOW|"
    assert peers_of("feedback", group, ("g-0", "g-3")) is not None
    assert peers_of("feedback", make_group("sff"), ("g-0", "g-1")) is None


def test_a_failure_stands_in_for_a_success_that_is_not_there() -> None:
    assert roles_and_ids(peers_of("failure_when_no_success", make_group("ssff"), ("g-0", "g-2"))) == [("success", "1")]
    assert roles_and_ids(peers_of("failure_when_no_success", make_group("sff"), ("g-0", "g-1"))) == [("failure", "2")]
    assert peers_of("failure_when_no_success", make_group("sf"), ("g-0", "g-1")) is None


def test_peers_only_leaves_the_question_out_and_the_system_message_in() -> None:
    group = make_group("sssff")
    peers = peers_of("peers_only", group, ("g-0", "g-3"))
    assert peers is not None
    assert peers == peers_of("2s1f", group, ("g-0", "g-3"))
    texts = {p.rollout_id: p.role for p in peers}
    shown = "FIRST success|NEXT success|WRONG failure|NOW"
    system, user = Message(role="system", content="S"), Message(role="user", content="q")
    answer = Message(role="assistant", content="a")
    context = render(condition("peers_only"), (system, user, answer, user), peers, texts, WORDS)
    assert context == (system, Message(role="user", content=shown))
    assert render(condition("peers_only"), "q", peers, texts, WORDS) == shown + "|"


def test_summaries_have_their_heading() -> None:
    peers = (Peer(rollout_id="a", role="success"), Peer(rollout_id="b", role="success"))
    shown = render(condition("summary_2"), "q", peers, {"a": "A", "b": "B"}, WORDS)
    assert shown == "q|SUMMARY A|SUMMARY B|NOW|"


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("work <summary> add both </summary> 4", "add both"),
        ("<summary>old</summary> <SUMMARY>new\nlines</SUMMARY>", "new\nlines"),
        ("  no tag ", "no tag"),
        ("<summary>never closed", "<summary>never closed"),
        ("<summary> </summary>", "<summary> </summary>"),
    ],
)
def test_summary_of(text: str, summary: str) -> None:
    assert summary_of(text) == summary


def test_an_excerpt_is_cut_between_words() -> None:
    # room for 20 - 7 = 13 characters: 7 of the head, 6 of the tail, each back to whole words
    assert excerpt("one two three four five six", 20) == "one [...] six"
    assert excerpt("a b", 20) == "a b"
    assert excerpt("x" * 50, 20) == "x" * 7 + " [...] " + "x" * 6


@given(st.text(), st.integers(20, 80))
def test_an_excerpt_is_never_longer(text: str, limit: int) -> None:
    assert len(excerpt(text, limit)) <= limit


@given(st.text(), st.text())
def test_shuffling_keeps_the_words_and_the_white_space(text: str, key: str) -> None:
    shuffled = shuffle_words(text, key)
    assert sorted(shuffled.split()) == sorted(text.split())
    assert [c for c in shuffled if c.isspace()] == [c for c in text if c.isspace()]
    assert shuffle_words(text, key) == shuffled


def test_shuffling_changes_the_order() -> None:
    text = " ".join(map(str, range(30)))
    assert len({shuffle_words(text, key) for key in "abc"} | {text}) == 4
    assert shuffle_words("a  b\nc", "key").replace("a", "").count("  ") == 1


def test_every_control_is_rendered_with_three_blocks() -> None:
    group = make_group("ssssfff", answer=list("1112223"))
    lender = make_group("ssff", group_id="h", prompt="other", responses=["p", "q", "r", "t"])
    pool = Pool([group, lender])
    conditions = [condition(n) for n in ("2s1f", *CONTROLS)]
    plan = Planner(codec=ByteCodec(), conditions=conditions, pool=pool, templates=WORDS).plan(group)
    assert plan.supported
    for _, context in plan.contexts.values():
        text = context.messages[-1]["content"] if not isinstance(context.messages, str) else context.messages
        assert sum(text.count(mark) for mark in ("FIRST", "NEXT", "WRONG")) == 3
        assert ("2 + 2" in text) == (context.condition != "peers_only")
