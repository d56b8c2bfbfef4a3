"""reasoning-gym tasks, judged by reasoning-gym's own scorers.

Reference: ``{"dataset": "chain_sum", "entry": {"question": ..., "answer": ..., "metadata": {...}}}``. The
reward is the scorer's score (1.0 for a right answer; some scorers give a little for a near one, which stays
below the default success threshold of 1.0).

Some scorers hand the answer to ``eval`` or to sympy's ``parse_expr``, which evaluates as well. An answer to
such a task is checked to be plain data or a plain formula first; anything else scores 0 and is never
evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

from mopd.verifiers import extract
from mopd.verifiers.base import Verdict

__all__ = ["judge", "load"]

_LITERAL_TASKS = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting"})
_FORMULA_TASKS = frozenset(
    {"simple_integration", "intermediate_integration", "polynomial_multiplication", "countdown", "puzzle24"}
)
_FORMULA_FUNCTIONS = frozenset(
    [
        "sqrt",
        "exp",
        "log",
        "ln",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "Abs",
        "erf",
        "Si",
        "Ci",
    ]
)


def load() -> None:
    """Import reasoning-gym ahead of the first response.

    Raises:
        ImportError: if it is not installed.
    """
    import reasoning_gym  # noqa: F401


def judge(response: str, reference: Mapping[str, Any]) -> Verdict:
    """Score the final answer of ``response`` with the scorer of ``reference["dataset"]``.

    Returns:
        A verdict with the scorer's score as reward; 0.0 and no answer if the response gives none.

    Raises:
        ValueError: if the reference lacks a field, or names a dataset unknown to reasoning-gym.
    """
    dataset, entry = reference.get("dataset"), reference.get("entry")
    if not isinstance(dataset, str) or not isinstance(entry, Mapping) or "answer" not in entry:
        raise ValueError(
            'a reasoning_gym reference is {"dataset": name, "entry": {"question", "answer", "metadata"}}, '
            f"got keys {sorted(reference)}"
        )
    answer = _final_answer(response, gold_is_number=_is_number(entry["answer"]))
    if answer is None:
        return Verdict(reward=0.0, feedback="The response gives no final answer. Put it in <answer> tags.")
    if not _safe_to_score(dataset, answer):
        return Verdict(reward=0.0, answer=answer, feedback="The answer is not plain data or a plain formula.")
    score = max(_score(dataset, candidate, entry) for candidate in _spellings(answer))
    if score >= 1.0:
        return Verdict(reward=1.0, answer=answer)
    return Verdict(reward=max(0.0, score), answer=answer, feedback=f"The final answer {answer[:200]!r} is not right.")


def _final_answer(response: str, *, gold_is_number: bool) -> str | None:
    text = extract.after_thinking(response)
    marked = extract.marked_answer(text)
    if marked is not None:
        return marked
    return extract.number_in_text(text) if gold_is_number else extract.text_answer(text)


def _is_number(gold: object) -> bool:
    return isinstance(gold, str) and extract.NUMBER.fullmatch(gold.strip()) is not None


def _spellings(answer: str) -> list[str]:
    """The answer as given and with its wrapping removed: a scorer may compare strings letter by letter.

    "3 + 4 = 7" in the tags is read as 7.
    """
    bare = extract.unwrap(answer)
    spellings = [answer, bare, re.sub(r"(?<=\d),(?=\d{3}\b)", "", bare), bare.replace("\u2212", "-")]
    if "=" in bare:
        spellings.append(extract.unwrap(bare.rsplit("=", 1)[1]))
    return list(dict.fromkeys(spelling for spelling in spellings if spelling))


def _safe_to_score(dataset: str, answer: str) -> bool:
    if dataset in _LITERAL_TASKS:
        if not re.search(r"[\[({'\"]", answer):
            return "__" not in answer and "(" not in answer
        try:
            ast.literal_eval(answer.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
        return True
    if dataset in _FORMULA_TASKS:
        return _is_formula(answer)
    return True


def _is_formula(answer: str) -> bool:
    """Whether the text can be nothing but arithmetic over numbers, symbols and known functions."""
    if len(answer) > 2000 or not re.fullmatch(r"[\w\s+\-*/^().,=\\{}$\u00d7\u00f7\u2212]*", answer):
        return False
    if "__" in answer or re.search(r"[A-Za-z_)]\s*\.|\.\s*[A-Za-z_]|\)\s*\(", answer):
        return False
    return all(name in _FORMULA_FUNCTIONS or len(name) == 1 for name in re.findall(r"([A-Za-z_]\w*)\s*\(", answer))


@lru_cache(maxsize=64)
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    try:
        # Its annotation says that the scorer takes no arguments.
        return cast(Callable[[str, dict[str, Any]], float], reasoning_gym.get_score_answer_fn(dataset))
    except ValueError as error:
        raise ValueError(f"reasoning-gym has no dataset {dataset!r}: {error}") from error


def _score(dataset: str, answer: str, entry: Mapping[str, Any]) -> float:
    return float(_scorer(dataset)(answer, dict(entry)))
