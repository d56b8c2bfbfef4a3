"""Find the final answer in a response: ``<answer>`` tags, ``\\boxed{}``, or free text.

The reading rules are shared by the math, reasoning-gym and multiple-choice verifiers. They look at the
response alone; what counts as right is for the caller.
"""

from __future__ import annotations

import re

__all__ = [
    "NUMBER",
    "after_thinking",
    "boxed_answer",
    "marked_answer",
    "number_in_text",
    "phrase_answer",
    "tagged_answer",
    "text_answer",
    "unwrap",
]

# A sign counts only where it cannot be a minus between two terms: "3 -4" reads as 3 and -4, "3-4" as 3 and 4.
NUMBER = re.compile(
    r"(?<![\w.,])[-+\u2212]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?%?(?![\w]|\.\d)"
    r"|(?<![\w)\]}])[-+\u2212]?\$?\.\d+"
)
_THINK_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THINK_START = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_ANSWER_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_ANSWER_CLOSE = re.compile(r"</answer>", re.IGNORECASE)
_BOXED = re.compile(r"\\f?boxed\s*")
_PHRASE = re.compile(
    r"(?:\b(?:answer|result|solution|total|sum|value)\b[^\n=:.]{0,40}?(?:\bis\b|\bequals\b|:|=)"
    r"|^[ \t]{0,8}#{2,4}(?=[ \t]{0,8}[-+$\d]))(?P<rest>[^\n]*(?:\n\s{0,8}[^\n]+)?)",
    re.IGNORECASE | re.MULTILINE,
)
_LONG_RESPONSE_CHARACTERS = 600
_MOST_BOXES = 20  # a degenerate response opens thousands, and each is read to the end of the text


def after_thinking(response: str) -> str:
    """The response without its reasoning block; empty if the block was never closed (a cut-off response)."""
    closed = list(_THINK_END.finditer(response))
    if closed:
        return response[closed[-1].end() :]
    opened = _THINK_START.search(response)
    return response[: opened.start()] if opened else response


def tagged_answer(text: str) -> str | None:
    """Content of the last ``<answer>`` that is not empty.

    An unclosed last tag reads to the end of the text, because samplers often stop at
    ``</answer>`` and drop it.
    """
    answer = None
    openings = list(_ANSWER_OPEN.finditer(text))
    for opening in openings:
        closing = _ANSWER_CLOSE.search(text, opening.end())
        following = _ANSWER_OPEN.search(text, opening.end())
        if closing is None and following is not None:
            continue
        if closing is not None and following is not None and following.start() < closing.start():
            continue
        content = text[opening.end() : closing.start() if closing else len(text)].strip()
        answer = content or answer
    return answer


def boxed_answer(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` (braces matched) or ``\\boxed 5`` that is not empty."""
    for match in list(_BOXED.finditer(text))[: -_MOST_BOXES - 1 : -1]:
        start = match.end()
        if start >= len(text):
            continue
        content = _braced(text, start) if text[start] == "{" else text[start:].split(maxsplit=1)[0].strip("$.")
        if content is not None and content.strip():
            return content.strip()
    return None


def _braced(text: str, start: int) -> str | None:
    depth = 0
    for position in range(start, len(text)):
        character = text[position]
        if character in "{}" and position > 0 and text[position - 1] == "\\":
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position]
    return None


def marked_answer(text: str) -> str | None:
    """The answer that the response itself marks as final, tags before ``\\boxed{}``, or None.

    A ``\\boxed{}`` inside the tags is opened as well.
    """
    tagged = tagged_answer(text)
    if tagged is not None:
        return boxed_answer(tagged) or tagged
    return boxed_answer(text)


def phrase_answer(text: str) -> str | None:
    """What follows the last "the answer is", "answer:", "result =" (or GSM8K's ``####``), or None."""
    rest = None
    for match in _PHRASE.finditer(text):
        lines = [line for line in match["rest"].splitlines() if line.strip(" *_:`$")]
        rest = lines[0] if lines else rest
    return unwrap(rest) or None if rest is not None else None


def unwrap(answer: str) -> str:
    """The answer without Markdown, math delimiters, ``\\text{}`` and closing punctuation around it."""
    for _ in range(10):
        previous = answer
        answer = answer.strip().strip("*_`$").strip()
        answer = re.sub(r"^\\[(\[]|\\[)\]]$", "", answer)
        answer = re.sub(r"^\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}$", r"\1", answer)
        answer = re.sub(r"^:\s*|(?<=[^.])[.;,!]$", "", answer)
        if answer == previous:
            break
    return answer


def number_in_text(text: str) -> str | None:
    """The number a free text gives as its answer, thousands separators removed, or None.

    In this order: what follows the last answer phrase; what follows the last ``=`` of the last line that has
    one; the number in the last bold text; the only number of the last line, or its last one. A response over
    600 characters is a derivation: there, only the phrase and the last line count.
    """
    phrase = phrase_answer(text)
    if phrase is not None:
        number = _last_after_equals(phrase) or _first_number(phrase)
        if number is not None:
            return number
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    searched = lines[-1:] if len(text) > _LONG_RESPONSE_CHARACTERS else lines[::-1]
    for line in searched:
        number = _last_after_equals(line)
        if number is not None:
            return number
        bold = re.findall(r"\*\*([^*\n]+)\*\*", line)
        number = _last_number(bold[-1]) if bold else None
        number = number or _last_number(line)
        if number is not None:
            return number
    return None


def text_answer(text: str) -> str | None:
    """The answer of a free text that need not be a number: its answer phrase, last bold text, or all of it.

    Up to 600 characters the text itself is taken for the answer (grids and lists have many lines).
    """
    phrase = phrase_answer(text)
    if phrase is not None:
        return phrase
    bold = re.findall(r"\*\*([^*\n]+)\*\*", text)
    if bold:
        return unwrap(bold[-1]) or None
    if len(text) > _LONG_RESPONSE_CHARACTERS:
        return None
    fence = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", text, re.DOTALL)
    return (fence[1] if fence else unwrap(text)) or None


def _last_after_equals(text: str) -> str | None:
    """The number right after the last ``=``, if the equation ends there ("3 + 4 = 7", not "x = 3 + 4")."""
    if "=" not in text:
        return None
    tail = unwrap(text.rsplit("=", 1)[1])
    number = NUMBER.match(tail)
    if number is None or re.match(r"\s*[-+*/^(\u00d7\u00f7]\s*[\d(]", tail[number.end() :]):
        return None
    return _plain(number[0])


def _first_number(text: str) -> str | None:
    number = NUMBER.search(text)
    return _plain(number[0]) if number else None


def _last_number(text: str) -> str | None:
    numbers = list(NUMBER.finditer(text))
    return _plain(numbers[-1][0]) if numbers else None


def _plain(number: str) -> str:
    return re.sub(r"[,$%\s]", "", number).replace("\u2212", "-").lstrip("+")
