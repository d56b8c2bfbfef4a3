"""A token view as HTML: in the page, and as a file that stands by itself.

Token texts are what a model wrote, so they are hostile until escaped: ``visible`` is the only way in which text gets
into the HTML, and values travel as JSON beside it. Each colour has a second sign, a line below the token: solid for
more, dotted for less, thicker for farther from 0. The levels are fixed in nats, so that two views can be compared.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

__all__ = ["KINDS", "Kind", "Side", "mark_kind", "standalone", "token_view", "view_values", "visible"]

ASSETS = Path(__file__).parent / "assets"
CSS = (ASSETS / "token_view.css").read_text(encoding="utf-8")
JS = (ASSETS / "token_view.js").read_text(encoding="utf-8")

# Characters that would be invisible or would turn the text around them are shown by their number.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff]")
_KEPT = {"\u200c", "\u200d"}  # joiners, which Persian, Hindi and emoji need


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How a column is coloured.

    Attributes:
        column: of ``mopd.tokenview.token_table``.
        words: for headings.
        sign: whether values have two directions.
        steps: borders between the levels, in the column's unit.
        legend: words for the levels from the lowest.
    """

    column: str
    words: str
    sign: bool
    steps: tuple[float, ...]
    legend: tuple[str, ...]


_DELTA_STEPS = (0.1, 0.5, 1.5, 4.0)
KINDS: dict[str, Kind] = {
    kind.column: kind
    for kind in (
        Kind(
            column="delta",
            words="Δ = teacher − student (nats)",
            sign=True,
            steps=_DELTA_STEPS,
            legend=("within ±0.1", "0.1 to 0.5", "0.5 to 1.5", "1.5 to 4", "beyond 4"),
        ),
        Kind(
            column="teacher",
            words="teacher's log-prob (nats)",
            sign=False,
            steps=(0.1, 0.7, 2.3, 4.6),
            legend=("p > 0.9", "p > 0.5", "p > 0.1", "p > 0.01", "p below 0.01"),
        ),
        Kind(
            column="student",
            words="student's log-prob (nats)",
            sign=False,
            steps=(0.1, 0.7, 2.3, 4.6),
            legend=("p > 0.9", "p > 0.5", "p > 0.1", "p > 0.01", "p below 0.01"),
        ),
        Kind(
            column="entropy",
            words="teacher's entropy (nats)",
            sign=False,
            steps=(0.3, 1.0, 2.0, 3.5),
            legend=("under 0.3", "0.3 to 1", "1 to 2", "2 to 3.5", "over 3.5"),
        ),
        Kind(
            column="student_entropy",
            words="student's entropy (nats)",
            sign=False,
            steps=(0.3, 1.0, 2.0, 3.5),
            legend=("under 0.3", "0.3 to 1", "1 to 2", "2 to 3.5", "over 3.5"),
        ),
    )
}
"""The colourings that every study has; marks come to these (``mark_kind``)."""


def mark_kind(tokens: pl.DataFrame, column: str) -> Kind:
    """The colouring of a mark: yes or no for booleans, by size and sign for numbers."""
    if tokens.schema[column] == pl.Boolean:
        return Kind(column=column, words=f"mark: {column}", sign=False, steps=(), legend=("no", "yes"))
    return Kind(column=column, words=f"mark: {column}", sign=True, steps=_DELTA_STEPS, legend=KINDS["delta"].legend)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """One column of a view: a title and a ``token_table`` or ``token_difference``; ``lines`` is its ``line_table``."""

    title: str
    tokens: pl.DataFrame
    lines: pl.DataFrame | None = None


def visible(text: str) -> str:
    """Escaped text in which control characters can be seen and nothing can be switched."""
    shown = _HIDDEN.sub(lambda m: m[0] if m[0] in _KEPT else f"⟨U+{ord(m[0]):04X}⟩", text)
    return html.escape(shown, quote=True)


def _level(value: Any, kind: Kind) -> str:
    """CSS class of a value, "" for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "m1" if value else ""
    level = bisect_right(kind.steps, abs(value))
    side = ("n" if value < 0 else "p") if kind.sign else "s"
    return f"{side}{level}" if level else ""


def _spans(tokens: pl.DataFrame, kind: Kind) -> list[str]:
    """A span per token. A line break is drawn as a sign and broken after it; a token without text shows its id."""
    spans = []
    for text, token_id, value in tokens.select("text", "token_id", kind.column).iter_rows():
        body = visible(text).replace("\n", '<span class="nl">↵</span>\n') if text else None
        if body is None:
            body = f'<span class="id">⟨{int(token_id)}⟩</span>'
        level = _level(value, kind)
        spans.append(f'<span class="t {level}">{body}</span>' if level else f'<span class="t">{body}</span>')
    return spans


def _text(side: Side, kind: Kind) -> str:
    spans = _spans(side.tokens, kind)
    attributes = 'class="tv-text" tabindex="0" role="group" aria-label="tokens: arrow keys move" dir="auto"'
    if side.lines is None:
        return f"<div {attributes}>{''.join(spans)}</div>"
    rows = []
    at = 0
    for line, n_tokens, total in side.lines.select("line", "n_tokens", "delta").iter_rows():
        words = "".join(spans[at : at + n_tokens]).rstrip("\n")
        rows.append(f'<div class="tv-line"><span>{line + 1}</span><span>{total:+.2f}</span><div>{words}</div></div>')
        at += n_tokens
    return f'<div {attributes}><div class="tv-line"><span>line</span><span>Σ Δ</span></div>{"".join(rows)}</div>'


def _legend(kind: Kind) -> str:
    if not kind.steps:
        return f'<span>{visible(kind.words)}:</span><span><span class="t m1">yes</span></span>'
    items = [f"<span>{visible(kind.words)}:</span>"]
    if kind.sign:
        items += [f'<span><span class="t n{i}">−</span> {kind.legend[i]}</span>' for i in (4, 3, 2, 1)]
        items += [f'<span><span class="t p{i}">+</span> {kind.legend[i]}</span>' for i in (1, 2, 3, 4)]
        items.append("<span>solid line: likelier, dotted: less likely</span>")
    else:
        items += [
            f'<span><span class="t{f" s{i}" if i else ""}">{i}</span> {words}</span>'
            for i, words in enumerate(kind.legend)
        ]
    return "".join(items)


def _curve(sides: Sequence[Side], caption: str) -> str:
    """Cumulative Δ over the tokens, as an SVG whose width is the response."""
    curves = [[0.0 if v is None else v for v in side.tokens["cumulative"]] for side in sides]
    values = [0.0, *(v for curve in curves for v in curve)]
    low, high = min(values), max(values)
    span = high - low or 1.0

    def y(value: float) -> float:
        return 4 + 92 * (high - value) / span

    lines = []
    for i, curve in enumerate(curves):
        stride = max(1, len(curve) // 2000)
        points = " ".join(
            f"{(place + 0.5) / len(curve) * 1000:.1f},{y(curve[place]):.2f}" for place in range(0, len(curve), stride)
        )
        lines.append(f'<polyline class="c{i % 2}" points="{points}"/>')
    names = " · ".join(
        f"{'dashed' if i % 2 else 'solid'}: {visible(side.title)}, ends at {curve[-1]:+.2f}"
        for i, (side, curve) in enumerate(zip(sides, curves, strict=True))
        if curve
    )
    return (
        f'<figure class="tv-curve"><figcaption><span>{visible(caption)} (from {low:+.2f} to {high:+.2f} nats; '
        f"click to go to the token)</span><span>{names}</span></figcaption>"
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="cumulative sum over the tokens">'
        f'<line class="zero" x1="0" x2="1000" y1="{y(0):.2f}" y2="{y(0):.2f}"/>{"".join(lines)}'
        '<line class="cursor" x1="-5" x2="-5" y1="0" y2="100"/></svg></figure>'
    )


def token_view(
    sides: Sequence[Side], kind: Kind, *, jumps: Mapping[str, Sequence[int]], caption: str = "cumulative Δ"
) -> str:
    """The view as a string of safe HTML; ``mountTokenView`` of the script brings it to life.

    Args:
        sides: one or more columns over the same tokens.
        kind: what the colours say.
        jumps: positions to go to, by the words on their button.
        caption: of the curve.
    """
    buttons = "".join(
        f'<button type="button" data-jump="{",".join(str(int(p)) for p in places)}">{visible(words)}'
        f"{f' ({len(places)})' if len(places) > 1 else ''}</button>"
        for words, places in jumps.items()
        if places
    )
    columns = "".join(
        f'<section class="tv-side"><h4>{visible(side.title)}</h4>{_text(side, kind)}</section>' for side in sides
    )
    return (
        f'<div class="tv"><div class="tv-legend">{_legend(kind)}</div><div class="tv-jumps">{buttons}</div>'
        '<div class="tv-info" aria-live="polite">Point at a token, or click into the text and use the arrow keys.</div>'
        f'<div class="tv-sides">{columns}</div>{_curve(sides, caption)}</div>'
    )


_NAMES = {
    "delta": "Δ",
    "cumulative": "cumulative Δ",
    "student_entropy": "student entropy",
    "teacher_rank": "teacher's rank of the token",
    "student_rank": "student's rank",
    "rank": "rank of |Δ|",
}


def view_values(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """What the view says of a token that is pointed at: JSON values, numbers to four decimals."""
    return [
        {
            "title": side.title,
            "text": side.tokens["text"].to_list(),
            "ids": side.tokens["token_id"].to_list(),
            "columns": [_NAMES.get(name, name) for name in shown.columns],
            "rows": [list(row) for row in shown.rows()],
        }
        for side, shown in ((side, _shown(side.tokens)) for side in sides)
    ]


def _shown(tokens: pl.DataFrame) -> pl.DataFrame:
    values = tokens.drop("position", "token_id", "text", "line")
    known = [name for name in values.columns if values[name].null_count() < max(values.height, 1)]
    return values.select(known).with_columns(pl.col(pl.Float64, pl.Float32).round(4))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src '{hash}'">
<title>{title}</title><style>:root {{ color-scheme: light dark; }} body {{ margin: 1.5rem; }}
{css}</style></head><body><h1 style="font: 600 1.2rem system-ui">{title}</h1>
{body}<script type="application/json" id="values">{values}</script>
<script>{script}</script></body></html>
"""


def standalone(view: str, sides: Sequence[Side], title: str) -> str:
    """A file that shows a ``token_view`` by itself, without a network; only its own script can run in it."""
    script = JS + (
        "mountTokenView(document.querySelector('.tv'), JSON.parse(document.getElementById('values').textContent));"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = json.dumps(view_values(sides), ensure_ascii=True, allow_nan=False)
    return _PAGE.format(
        hash=f"sha256-{digest}",
        title=visible(title),
        css=CSS,
        body=view,
        values=values.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        script=script,
    )
