"""Contexts as messages: what is shown, in which order and in whose words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.conditions import CONDITIONS, condition
from mopd.contexts import Templates, blocks, render
from mopd.peers import Peer
from mopd.rollouts import Message, Prompt
from tests.helpers import PROMPT

TEXTS = {"a": "it is 4", "b": "2+2=4", "x": "it is 5", "y": "22"}
PEERS = (
    Peer(rollout_id="a", role="success"),
    Peer(rollout_id="b", role="success"),
    Peer(rollout_id="x", role="failure"),
    Peer(rollout_id="y", role="failure"),
)
WORDS = Templates(
    first_success="FIRST {response}.",
    further_success="NEXT {response}.",
    failure="WRONG {response}.",
    closing="NOW YOU",
    separator=" | ",
)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def content(context: Prompt) -> str:
    (message,) = context
    assert not isinstance(message, str)
    return message["content"]


@pytest.mark.parametrize("prompt", [PROMPT, (user("q"),), (user("q"), Message(role="assistant", content="a")), "2+2="])
def test_question_only_is_the_prompt_itself(prompt: Prompt) -> None:
    assert render(CONDITIONS["question_only"], prompt, (), {}, WORDS) is prompt


def test_blocks_come_in_the_order_of_the_design() -> None:
    pieces = blocks(condition("2s2f"), "Q", PEERS, TEXTS, WORDS)
    assert [(p.section, p.text, p.rollout_id) for p in pieces] == [
        ("question", "Q", None),
        ("success", "FIRST it is 4.", "a"),
        ("success", "NEXT 2+2=4.", "b"),
        ("failure", "WRONG it is 5.", "x"),
        ("failure", "WRONG 22.", "y"),
        ("closing", "NOW YOU", None),
    ]


def test_all_of_it_goes_into_the_last_user_message() -> None:
    prompt = (Message(role="system", content="S"), user("old"), Message(role="assistant", content="A"), user("new"))
    context = render(condition("1s1f"), prompt, (PEERS[0], PEERS[2]), TEXTS, WORDS)
    assert context == (*prompt[:-1], user("new | FIRST it is 4. | WRONG it is 5. | NOW YOU"))


def test_the_prompt_that_came_in_is_left_alone() -> None:
    prompt = (user("q"),)
    render(condition("1f"), prompt, PEERS[2:3], TEXTS, WORDS)
    assert prompt == (user("q"),)


def test_shell_only_is_the_wording_without_a_peer() -> None:
    assert render(condition("shell_only"), (user("q"),), (), {}, WORDS) == (user("q | NOW YOU"),)


def test_a_plain_text_prompt_gives_plain_text() -> None:
    assert render(condition("1s"), "2+2=", PEERS[:1], TEXTS, WORDS) == "2+2= | FIRST it is 4. | NOW YOU | "


@pytest.mark.parametrize("prompt", [(), (user("q"), Message(role="assistant", content="Let me"))])
def test_without_a_user_message_at_the_end_there_is_no_place_for_peers(prompt: Prompt) -> None:
    with pytest.raises(ValueError, match="must end with a user message"):
        render(condition("shell_only"), prompt, (), {}, WORDS)


@pytest.mark.parametrize(
    "text",
    ["{response}", "a {response} b {response}", "{}", "{0}", "{{x}}", "%s", "\\frac{1}{2}", "{% raw %}", "${x}", "\\1"],
)
def test_braces_in_a_peer_are_text(text: str) -> None:
    texts = {"a": text, "x": "other"}
    context = render(condition("1s1f"), (user("q {response}"),), (PEERS[0], PEERS[2]), texts, WORDS)
    assert content(context) == f"q {{response}} | FIRST {text}. | WRONG other. | NOW YOU"


@given(st.text(), st.text(), st.text())
def test_question_and_peers_are_shown_letter_by_letter(question: str, good: str, bad: str) -> None:
    pieces = blocks(condition("1s1f"), question, (PEERS[0], PEERS[2]), {"a": good, "x": bad}, WORDS)
    assert [p.text for p in pieces] == [question, f"FIRST {good}.", f"WRONG {bad}.", "NOW YOU"]


def test_the_default_headings_say_which_is_which() -> None:
    text = content(render(condition("2s1f"), (user("q"),), PEERS[:3], TEXTS, Templates()))
    marks = ("q", "correct solution", "it is 4", "Another correct", "2+2=4", "failed", "it is 5")
    order = [text.index(mark) for mark in marks]
    assert order == sorted(order)
    assert text.endswith(Templates().closing)


@pytest.mark.parametrize("name", ["first_success", "further_success", "failure"])
@pytest.mark.parametrize(("wording", "n"), [("no slot", 0), ("{response} {response}", 2), ("{ response }", 0)])
def test_a_peer_template_holds_its_slot_once(name: str, wording: str, n: int) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must hold {{response}} exactly once, found it {n} times"):
        Templates(**{name: wording})


def test_the_hash_follows_every_word() -> None:
    changed = [
        dataclasses.replace(WORDS, **{f.name: getattr(WORDS, f.name) + "!"}) for f in dataclasses.fields(Templates)
    ]
    assert len({t.hash for t in [WORDS, *changed]}) == len(changed) + 1
    assert WORDS.hash == dataclasses.replace(WORDS).hash


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_file_overrides_what_it_names(tmp_path: Path) -> None:
    path = toml(tmp_path, '[templates]\nclosing = "Löse sie."\nfailure = "Falsch: {response}"\n')
    assert Templates.from_toml(path) == Templates(closing="Löse sie.", failure="Falsch: {response}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no .templates. table"),
        ("templates = 3", "no .templates. table"),
        ('[templates]\nclosin = "x"\n', "unknown templates closin; known are first_success"),
        ("[templates]\nclosing = 3\n", "must be strings, which closing is not"),
        ('[templates]\nfailure = "no slot"\n', "'failure' must hold"),
        ("[templates", "t.toml"),
    ],
)
def test_a_bad_toml_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Templates.from_toml(toml(tmp_path, text))


def test_headings_are_what_stands_before_a_peer() -> None:
    assert WORDS.headings == (  # one word each of its own; the defaults of the others
        "a summary of a correct solution",
        "what was wrong with the failed attempt",
    )
    assert Templates().headings == (
        "a correct solution to this problem",
        "another correct solution",
        "a failed attempt whose mistakes should be avoided",
        "a summary of a correct solution",
        "what was wrong with the failed attempt",
    )


@pytest.mark.parametrize("response", ["Another  correct\nSOLUTION is 4", "so: another correct solution"])
def test_a_repeated_heading_is_found_whatever_its_case_and_white_space(response: str) -> None:
    assert Templates().repeated_in(response)


@pytest.mark.parametrize(
    "response", ["", "4", "a correct solution", "another, correct solution", "yet another correct solutions"]
)
def test_other_words_are_no_heading(response: str) -> None:
    assert not Templates().repeated_in(response)


def test_a_file_that_cannot_be_read_is_bad_input_with_its_mend(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        words = f"templates '{path}' cannot be read \\({why}\\): give a TOML file with a .templates. table"
        with pytest.raises(ValueError, match=words):
            Templates.from_toml(path)
