"""Multiple-choice answers: a letter in ``<answer>`` tags, in ``\\boxed{}``, or in plain text.

Reference: ``{"answer": "B"}``, optionally with ``"options"``: their number, or the list of their texts. With
the texts, an answer that restates one option word for word counts as its letter.

Several letters ("A or B") are no answer, and neither is the article in "the answer is a protein".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mopd.verifiers import extract
from mopd.verifiers.base import Verdict

__all__ = ["extract_letter", "judge"]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Repetitions are bounded: degenerate responses repeat a character thousands of times, and unbounded ones next
# to each other would take polynomial time over it.
_SPACE = r"\s{0,8}"
_OPENING = r"(?:\\\(|\\\[|\\text(?:bf|rm|it)?\{|\\mathrm\{|\\mathbf\{|\\boxed\{|[*_`$(\[{\"']){0,8}"
_CLOSING = r"(?:\\\)|\\\]|[*_`$)\]}\"']){0,8}"
_ALONE = re.compile(rf"{_OPENING}([A-Za-z]){_CLOSING}[.:,;)!]*{_CLOSING}")
_LABELLED = re.compile(
    rf"{_OPENING}(?:[Oo]ption\s+|[Cc]hoice\s+)?{_OPENING}([A-Z])"
    rf"(?:{_CLOSING}[.:)\]]|\s+[-\u2013\u2014=]\s){_CLOSING}{_SPACE}\S"
)
_BRACKETED = re.compile(r"\(([A-Z])\)\s+\S")
_PHRASE = re.compile(
    r"(?i:\b(?:answer|correct\s+(?:option|choice|letter|one|statement)|(?:choose|select|pick|go\s+with|chose))\b"
    r"(?:\s+(?:here|to\s+(?:this|the)\s+question))?"
    r"[*_`]{0,4}\s{0,8}"
    r"(?:(?:is|would\s+be|should\s+be|must\s+be)(?:\s+(?:therefore|thus|clearly|indeed))?)?"
    r"[*_`]{0,4}\s{0,8}[:=]?[*_`]{0,4}\s{0,8}"
    r"(?:(?:the\s+)?(?:option|choice|letter)\s{0,8}:?\s{0,8})?)"
    rf"(?P<opening>{_OPENING})(?P<letter>[A-Z])(?![A-Za-z0-9'\u2019])(?P<closing>{_CLOSING})"
    r"(?=(?P<rest>[^\n]*))"
)
_SEVERAL = re.compile(
    rf"{_SPACE}{_CLOSING}{_SPACE}(?:,|/|&|\+|\bor\b|\band\b|,{_SPACE}and\b|,{_SPACE}or\b)+{_SPACE}"
    rf"(?:[Oo]ption\s+)?{_OPENING}[A-Z](?![A-Za-z])"
)
# What may follow a letter that would otherwise be the article A or the pronoun I: the option's text in brackets,
# quotes or dollars, or a number; then an end, or a word that no noun phrase starts with.
_VALUE = (
    r"(?:\s{0,8}(?:\([^()\n]{1,200}\)|\\\([^\n]{1,200}?\\\)|\$[^$\n]{1,200}\$|\"[^\"\n]{1,200}\""
    r"|\u201c[^\u201d\n]{1,200}\u201d|'[^'\n]{1,200}'|[-+\u2212]?\d[\d.,/]{0,20}%?(?=[.;:!?\s]|$)))"
)
_WORD = r"(?:because|since|as|for|due|based|given|which|with)\b"
_REASON = re.compile(
    rf"\s{{0,8}}(?:$|[.,:;!?)=\-\u2013\u2014]|{_WORD})|{_VALUE}\s{{0,8}}(?:[.,;:!?]{{0,3}}$|[.,;:!?](?=\s)|{_WORD})"
)
# Sentences that name the choice without the word answer before it.
_STATED = re.compile(
    r"(?:(?i:\b(?P<doubt>(?:if|whether|unless|suppose|assume|assuming|why|how)\s{1,8}(?:that\s{1,8})?)?(?:option|choice)\s{1,8})"
    rf"{_OPENING}(?P<option>[A-Z])(?![A-Za-z0-9'\u2019]){_CLOSING}{_VALUE}?[*_]{{0,4}}\s{{1,8}}"
    r"is\s{1,8}(?:(?:therefore|thus|clearly|indeed)\s{1,8})?(?:the\s{1,8})?[*_]{0,4}(?:correct|right|best)"
    r"(?:\s{1,8}(?:answer|option|choice|one))?[*_]{0,4}\s{0,8}(?:[.;:!]|$|(?:because|since|as)\b)"
    r"|(?:^|(?<=[.!?;]\s))[*_]{0,4}(?i:therefore|thus|hence|so|consequently)\b,?\s{1,8}(?i:(?:it\s{1,8}is|option|choice)\s{1,8})?"
    rf"{_OPENING}(?P<conclusion>[A-Z])(?![A-Za-z0-9'\u2019]){_CLOSING}{_VALUE}?[.!]?{_CLOSING}[ \t]{{0,8}}$)",
    re.MULTILINE,
)


def judge(response: str, reference: Mapping[str, Any]) -> Verdict:
    """Compare the chosen letter with ``reference["answer"]``.

    Raises:
        ValueError: if the gold answer is no letter, or lies beyond the options.
    """
    gold, options = reference.get("answer"), reference.get("options")
    count = len(options) if isinstance(options, Sequence) and not isinstance(options, str) else options
    if not isinstance(gold, str) or gold.strip().upper() not in _LETTERS or len(gold.strip()) != 1:
        raise ValueError(f'a choice reference is {{"answer": a letter from A to Z}}, got {gold!r}')
    gold = gold.strip().upper()
    if count is not None and not (isinstance(count, int) and _LETTERS.index(gold) < count <= len(_LETTERS)):
        raise ValueError(f"the gold answer {gold} is not among the {count} options; at most 26 are supported")
    letter = extract_letter(response, options if isinstance(options, Sequence) else None)
    if letter is None:
        return Verdict(reward=0.0, feedback="The response chooses no single option. Give one letter in <answer> tags.")
    if letter == gold:
        return Verdict(reward=1.0, answer=letter)
    return Verdict(reward=0.0, answer=letter, feedback=f"Option {letter} is not right.")


def extract_letter(response: str, options: Sequence[str] | None = None) -> str | None:
    """The one letter that the response chooses, in upper case, or None.

    Tags count before ``\\boxed{}``, that before the last phrase such as "the answer is (C)", that before a
    first or last line that is a letter or a labelled option, and that before "Option C is correct."
    """
    text = extract.after_thinking(response)
    marked = extract.marked_answer(text)
    if marked is not None:
        return _letter_in(marked, options) or _stated(marked)
    phrases = list(_PHRASE.finditer(text))
    for phrase in reversed(phrases):
        if _is_choice(phrase):
            return None if _SEVERAL.match(phrase["rest"]) else phrase["letter"]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeats_options = sum(_LABELLED.match(line) is not None for line in lines) > 1
    for line in dict.fromkeys(lines[-1:] + lines[:1]):
        if repeats_options and _ALONE.fullmatch(line) is None:
            continue
        letter = _letter_in(line, options)
        if letter is not None:
            return letter
    return _stated(text) or _restated(text, options)


def _stated(text: str) -> str | None:
    """The letter of "Option B is correct." or "Therefore, B.", unless such sentences name several."""
    letters = {match["option"] or match["conclusion"] for match in _STATED.finditer(text) if not match["doubt"]}
    return letters.pop() if len(letters) == 1 else None


def _is_choice(phrase: re.Match[str]) -> bool:
    """Whether the letter of the phrase is a choice and not the word A or I."""
    if phrase["letter"] not in "AI" or phrase["opening"]:
        return True
    return bool(_REASON.match(phrase["rest"]) or _SEVERAL.match(phrase["rest"]))


def _letter_in(answer: str, options: Sequence[str] | None) -> str | None:
    """The letter of an answer that stands alone: "C", "(C)", "C. mitochondria", "option C"."""
    answer = answer.strip()
    if (alone := _ALONE.fullmatch(answer)) is not None:
        return alone[1].upper()
    named = re.fullmatch(rf"(?i:option|choice|answer)\s*:?\s*{_OPENING}([A-Za-z]){_CLOSING}\.?", answer)
    if named is not None:
        return named[1].upper()
    labelled = _LABELLED.match(answer) or _BRACKETED.match(answer)
    if labelled is not None:
        several = _SEVERAL.match(answer[labelled.end(1) :])
        others = {match[1] for match in re.finditer(r"^\W*([A-Z])[.:)]\s", answer, re.MULTILINE)} - {labelled[1]}
        return None if several or others else labelled[1]
    phrases = [phrase for phrase in _PHRASE.finditer(answer) if _is_choice(phrase)]
    if phrases:
        return None if _SEVERAL.match(phrases[-1]["rest"]) else phrases[-1]["letter"]
    return _restated(answer, options)


def _restated(answer: str, options: Sequence[str] | None) -> str | None:
    if not options:
        return None
    wanted = _normal(answer)
    matching = [index for index, option in enumerate(options) if _normal(option) == wanted]
    return _LETTERS[matching[0]] if len(matching) == 1 and wanted else None


def _normal(text: str) -> str:
    return " ".join(extract.unwrap(text).casefold().split())
