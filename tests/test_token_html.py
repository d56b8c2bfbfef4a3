"""Token views and contexts as HTML: nothing that a model wrote becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from app.markup import context_html, difference_html, facts_html, plain
from app.tokens_html import KINDS, Side, mark_kind, standalone, token_numbers, token_view, view_values, visible
from mopd.contexts import Block
from mopd.tokenview import jump_targets, line_table, token_table
from tests.app_studies import EMOJI, HOSTILE, RTL

OURS = {
    *("div", "span", "h4", "button", "section", "figure", "figcaption", "svg", "polyline", "line", "pre", "ins", "del"),
    *("html", "head", "meta", "title", "style", "body", "h1", "script"),
}
ATTRIBUTES = {
    *("class", "tabindex", "role", "aria-label", "aria-live", "dir", "type", "data-jump", "points", "viewbox", "style"),
    *("preserveaspectratio", "x1", "x2", "y1", "y2", "charset", "name", "content", "http-equiv", "lang", "id"),
}


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would read them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


def side(pieces: list[str], *, lines: bool = False, title: str = "2s1f") -> Side:
    n = len(pieces)
    row = {
        "rollout_id": "r",
        "token_ids": list(range(n)),
        "teacher_logprob": [-0.05 * 3**i for i in range(n)],
        "student_logprob": [-1.0] * n,
        "entropy": [0.5] * n,
        "student_entropy": None,
    }
    tokens = token_table(row, pieces, {"copied": [i == 1 for i in range(n)]})
    return Side(title=title, tokens=tokens, lines=line_table(tokens) if lines else None)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("lines", [False, True])
def test_hostile_tokens_are_text(hostile: str, lines: bool) -> None:
    sides = [side([hostile, *re.findall("..?", hostile)], lines=lines, title=hostile)]
    view = token_view(sides, KINDS["delta"], jumps={hostile: [0]}, caption=hostile)
    for markup in (view, standalone(view, sides, hostile)):
        seen = read(markup)
        assert set(seen.tags) <= OURS
        assert seen.attributes <= ATTRIBUTES
        assert visible(hostile).count("<") == 0
    assert read(view).tags.count("script") == 0
    assert read(standalone(view, sides, hostile)).tags.count("script") == 2  # the values and our own


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_contexts_are_text(hostile: str) -> None:
    sections = [Block(section="success", text=hostile, rollout_id="r"), Block(section=hostile, text=hostile)]
    made = context_html([{"role": hostile, "content": hostile}], hostile, sections, {"r": hostile})
    for markup in (made, difference_html(hostile, f"{hostile} {hostile}"), facts_html({hostile: hostile})):
        assert set(read(markup).tags) <= OURS
        assert read(markup).attributes <= ATTRIBUTES


def test_text_survives_in_every_script() -> None:
    for text in (EMOJI, RTL):
        assert read(visible(text)).text == text


def test_what_would_turn_or_hide_text_is_shown_by_number() -> None:
    assert visible("a\u202eb\x00") == "a⟨U+202E⟩b⟨U+0000⟩"


def test_each_direction_has_its_own_sign() -> None:
    # teacher -0.05 against -1: +0.95 is level 2 up; -1.35: -0.35 is level 1 down; -4.05: -3.05 is level 3 down
    view = token_view([side(["a", "b", "c", "d", "e"])], KINDS["delta"], jumps={})
    body = view[view.index("tv-text") :]
    assert re.findall(r'class="t ?(\w*)"', body) == ["p2", "p2", "p2", "n1", "n3"]


def test_a_mark_is_coloured_where_it_holds() -> None:
    one = side(["a", "b", "c"])
    view = token_view([one], mark_kind(one.tokens, "copied"), jumps=jump_targets(one.tokens))
    body = view[view.index("tv-text") :]
    assert re.findall(r'class="t ?(\w*)"', body) == ["", "m1", ""]
    assert 'data-jump="1">copied' in view


def test_a_token_without_text_shows_its_id() -> None:
    assert "⟨1⟩" in token_view([side(["a", "", "c"])], KINDS["teacher"], jumps={})


def test_only_our_own_script_may_run_in_the_file() -> None:
    sides = [side(["a", "</script><b>"])]
    page = standalone(token_view(sides, KINDS["delta"], jumps={}), sides, "title")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    (values,) = re.findall(r'<script type="application/json" id="values">(.*?)</script>', page, re.DOTALL)
    assert json.loads(values) == view_values(sides)


def test_markdown_signs_are_escaped() -> None:
    assert plain("![x](y) <b> :red[z]\n$a$") == r"\!\[x\]\(y\) \<b\> \:red\[z\] \$a\$"


def test_a_difference_is_struck_through_and_underlined() -> None:
    assert difference_html("a b\nsame", "a c\nsame").count("<del>b</del><ins>c</ins>") == 1


def test_ranks_are_said_to_be_of_whom() -> None:
    row = {
        "rollout_id": "r",
        "token_ids": [5, 6],
        "teacher_logprob": [-0.5, -4.0],
        "student_logprob": [-1.0, -1.0],
        "teacher_rank": [1, 37],
        "student_rank": [2, 3],
    }
    ranked = Side(title="2s1f", tokens=token_table(row, ["a", "b"]))
    (shown,) = view_values([ranked])
    told = [dict(zip(shown["columns"], values, strict=True)) for values in shown["rows"]]
    # |Δ| is 0.5 and 3, so the second token is the first by |Δ|
    names = ("rank in the teacher's vocabulary", "rank in the student's vocabulary", "rank of |Δ| in the response")
    assert [tuple(values[name] for name in names) for values in told] == [(1, 2, 2), (37, 3, 1)]
    page = standalone(token_view([ranked], KINDS["delta"], jumps={}), [ranked], "ranks")
    assert all(name in json.loads(re.findall(r'id="values">(.*?)</script>', page)[0])[0]["columns"] for name in names)
    table = token_numbers([ranked])
    assert table["rank_in_teacher_vocabulary"].to_list() == [1, 37]
    assert table["rank_in_student_vocabulary"].to_list() == [2, 3]
    assert table["rank_of_abs_delta_in_response"].to_list() == [2, 1]
    assert table["view"].to_list() == ["2s1f", "2s1f"]
