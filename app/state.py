"""Every view's state is in the URL, and only there: a link reopens exactly what was seen.

A widget shows what the URL says; when somebody changes it, the URL is changed first and the page is drawn from it.
Links between pages take the state along. What a link says is checked against what there is; a value that is not among
the options is named and replaced, never used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from app.data import Study

__all__ = [
    "address",
    "all_studies",
    "carried",
    "choice",
    "go",
    "many",
    "number",
    "set_study",
    "step",
    "study",
    "text",
    "toggle",
]

SHARED = ("study", "task", "protocol", "score", "metric", "condition", "group", "rollout", "unit")
"""Parameters that go along from page to page; the others belong to one page."""
FILTERS = ("compared", "words", "flags", "lowest", "highest", "sort")
"""The board's filter, which the group page keeps for its next and previous."""
_STUDY, _ALL, _CARRY = "the study", "all studies", "carried along"


def set_study(chosen: Study, found: Mapping[str, Study]) -> None:
    """Say which study the page shows, and which there are."""
    st.session_state[_STUDY], st.session_state[_ALL] = chosen, dict(found)


def all_studies() -> Mapping[str, Study]:
    """Every study that can be opened, by name."""
    return st.session_state[_ALL]


def study() -> Study:
    """The study that the page shows."""
    return st.session_state[_STUDY]


def carried(**changes: str | None) -> dict[str, str]:
    """The parameters for a link to another page; None leaves one out."""
    now = {name: st.query_params[name] for name in (*SHARED, *FILTERS) if name in st.query_params}
    kept = {**st.session_state.get(_CARRY, {}), **now, **changes}
    return {name: value for name, value in kept.items() if value is not None}


def go(page: str, **changes: str | None) -> None:
    """Open another page with the state of this one and these changes."""
    st.switch_page(f"views/{page}.py", query_params=carried(**changes))


def address(name: str, value: str | None) -> None:
    """Put a value into the URL, or take it out (None), and keep it for the other pages."""
    if value is None:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != value:
        st.query_params[name] = value
    if name in (*SHARED, *FILTERS):
        st.session_state.setdefault(_CARRY, {})[name] = value


def _widget(name: str, read: Callable[[Any], str | None]) -> dict[str, Any]:
    key = f"url {name}"
    return {"key": key, "on_change": lambda: address(name, read(st.session_state[key]))}


def choice(
    place: Any,
    label: str,
    options: Sequence[str],
    name: str,
    *,
    default: str | None = None,
    words: Mapping[str, str] | None = None,
    help: str | None = None,
) -> str:
    """A select box; ``options`` must not be empty. ``words`` says how options are shown."""
    given = st.query_params.get(name)
    fallback = default if default is not None and default in options else options[0]
    value = given if given is not None and given in options else fallback
    if given is not None and given not in options:
        st.toast(f"The link asks for a {name} that is not here; showing another one.", icon=":material/link_off:")
    address(name, value)
    shown = words or {}
    widget = _widget(name, lambda chosen: chosen)
    st.session_state[widget["key"]] = value
    place.selectbox(label, options, format_func=lambda o: shown.get(o, o), help=help, **widget)
    return value


def many(place: Any, label: str, options: Sequence[str], name: str, *, help: str | None = None) -> list[str]:
    """A box for several values, in the URL with commas."""
    value = [part for part in st.query_params.get(name, "").split(",") if part in options]
    address(name, ",".join(value) or None)
    widget = _widget(name, lambda chosen: ",".join(chosen) or None)
    st.session_state[widget["key"]] = value
    place.multiselect(label, options, placeholder="any", help=help, **widget)
    return value


def text(place: Any, label: str, name: str, *, help: str | None = None, placeholder: str = "") -> str:
    """A line of text."""
    value = st.query_params.get(name, "")
    address(name, value or None)
    widget = _widget(name, lambda typed: typed.strip() or None)
    st.session_state[widget["key"]] = value
    place.text_input(label, help=help, placeholder=placeholder, **widget)
    return value


def number(place: Any, label: str, name: str, *, lowest: int, highest: int, default: int) -> int:
    """A whole number between two bounds."""
    given = st.query_params.get(name, "")
    value = min(max(int(given), lowest), highest) if given.removeprefix("-").isdecimal() else default
    address(name, None if value == default else str(value))
    widget = _widget(name, lambda chosen: None if chosen == default else str(chosen))
    st.session_state[widget["key"]] = value
    place.number_input(label, min_value=lowest, max_value=highest, **widget)
    return value


def toggle(place: Any, label: str, name: str, *, help: str | None = None) -> bool:
    """A switch, off by default."""
    value = st.query_params.get(name) == "yes"
    address(name, "yes" if value else None)
    widget = _widget(name, lambda on: "yes" if on else None)
    st.session_state[widget["key"]] = value
    place.toggle(label, help=help, **widget)
    return value


def step(place: Any, options: Sequence[str], name: str, *, what: str, keys: tuple[str, str]) -> None:
    """Buttons for the option before and after the one in the URL, with their keys."""
    now = options.index(st.query_params[name]) if st.query_params.get(name) in options else -1
    for offset, word, key in ((-1, "Previous", keys[0]), (1, "Next", keys[1])):
        there = now + offset
        reachable = 0 <= there < len(options)
        place.button(
            f"{word} {what}",
            key=f"{word} {name}",
            shortcut=key,
            disabled=not reachable,
            on_click=address,
            args=(name, options[there] if reachable else None),
        )
