"""Mathematical answers, compared with the gold answer by the ``math-verify`` library.

Reference: ``{"answer": "..."}``, LaTeX or plain. A gold answer that the library cannot read leaves the
response unjudged, unless the response says it word for word.

The time limits of math-verify rest on ``SIGALRM`` and are switched off; `mopd.verifiers.worker` runs this
module in a process that it kills.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from mopd.verifiers import extract
from mopd.verifiers.base import Verdict

__all__ = ["judge", "load"]

_LONGEST_ANSWER_CHARACTERS = 5000
_BESIDE = re.compile(r"\d\s+\.?\d")
_THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(?: \d{3})+(?:\.\d+)?\s?%?\.?")


def load() -> None:
    """Import math-verify ahead of the first response.

    Raises:
        ImportError: if it is not installed.
    """
    import math_verify  # noqa: F401

    # It warns at every call that its time limits are off, which they are on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def judge(response: str, reference: Mapping[str, Any]) -> Verdict:
    """Compare the final answer of ``response`` with ``reference["answer"]``.

    Returns:
        Reward 1.0 or 0.0; None if the gold answer cannot be read.

    Raises:
        ValueError: if the reference has no answer.
    """
    from math_verify import verify

    gold = reference.get("answer")
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or not str(gold).strip():
        raise ValueError(f'a math reference is {{"answer": text or number}}, got {gold!r}')
    gold = extract.boxed_answer(str(gold)) or str(gold).strip()
    answer, parsed = _final_answer(response)
    if answer is None:
        return Verdict(reward=0.0, feedback="The response gives no final answer. Put it in \\boxed{}.")
    if _normal(answer) == _normal(gold):
        return Verdict(reward=1.0, answer=answer)
    parsed_gold = _parse(gold)
    if not parsed_gold:
        return Verdict(reward=None, answer=answer, feedback="Not judged: the reference answer is not mathematics.")
    if parsed and verify(parsed_gold, parsed, timeout_seconds=None):
        return Verdict(reward=1.0, answer=answer)
    return Verdict(reward=0.0, answer=answer, feedback=f"The final answer {answer[:200]!r} is not right.")


def _final_answer(response: str) -> tuple[str | None, list[Any]]:
    """The answer as text and as the expressions that it may stand for."""
    from math_verify import parse

    text = extract.after_thinking(response)
    marked = extract.marked_answer(text)
    if marked is not None:
        return marked, _parse(marked)
    phrase = extract.phrase_answer(text)
    if phrase is not None and len(phrase) <= 100 and (parsed := _parse(phrase)):
        return phrase, parsed
    if len(text.strip().splitlines()) == 1 and (parsed := _parse(extract.unwrap(text))):
        return extract.unwrap(text), parsed
    parsed = parse(text[-_LONGEST_ANSWER_CHARACTERS:], parsing_timeout=0)
    shown = next((part for part in parsed if isinstance(part, str)), None)
    return shown, parsed


def _parse(answer: str) -> list[Any]:
    """What the library reads in an answer that stands alone; empty for prose."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    bare = answer.strip().strip("$").strip()
    if not bare or len(bare) > _LONGEST_ANSWER_CHARACTERS or _is_prose(bare):
        return []
    plain: list[Any] = []
    # The library adds or multiplies numbers that stand side by side, or takes the last alone.
    beside = _BESIDE.search(bare) is not None and "\\" not in bare
    if beside and not _THOUSANDS.fullmatch(bare):
        return []
    latex = [] if beside else parse(f"${bare}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=0)
    if "\\" not in bare and re.fullmatch(r"[-+]?\$?[\d,. /%]+[.]?", bare):
        plain = parse(bare, extraction_config=[ExprExtractionConfig()], parsing_timeout=0)
    return [*latex, *plain]


def _is_prose(text: str) -> bool:
    """Two words in a row, outside of LaTeX commands: the library would read their letters as a product."""
    spoken = re.sub(r"\\(?:text|mathrm|mbox|operatorname)\s*\{[^{}]*\}", " ", text)
    return re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?![A-Za-z(])", spoken) is not None


def _normal(answer: str) -> str:
    return " ".join(extract.unwrap(answer).split()).casefold()
