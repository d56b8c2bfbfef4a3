"""The wording of the prompts, one function per answer format.

Each asks for little reasoning, so that rollouts stay short, and for an answer format that the verifier reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mopd.rollouts import Prompt

__all__ = ["action_prompt", "choice_prompt", "function_prompt", "math_prompt", "program_prompt", "tool_prompt"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def math_prompt(question: str) -> Prompt:
    """A question whose final answer goes into ``\\boxed{}``."""
    return _chat(
        "You solve mathematical problems. Show the calculation in at most four short lines, without explanations. "
        "End with the final answer in \\boxed{}, without units.",
        question.strip(),
    )


def choice_prompt(question: str, options: Sequence[str], letters: Sequence[str] | None = None) -> Prompt:
    """A question with lettered options (A, B, ... unless ``letters`` are given).

    The letter comes first, as small models write it anyway; asked for tags at the end, they forget the letter.
    """
    letters = LETTERS[: len(options)] if letters is None else letters
    listed = "\n".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
    return _chat(
        "You answer multiple-choice questions in one or two short sentences.",
        f"{question.strip()}\n\n{listed}\n\n"
        'Begin with "The correct answer is" and the letter of the option. Then give the reason in one short sentence.',
    )


def function_prompt(signature: str, description: str, example: Mapping[str, Any]) -> Prompt:
    """A Python function to write. ``example`` is one of its tests, shown as a call and its value."""
    call = f"{signature.split('(')[0]}({', '.join(repr(a) for a in example['args'])})"
    return _chat(
        "You write Python functions. Answer with a single ```python block that defines the function, without tests "
        "and without explanations.",
        f"Write the function `{signature}`.\n\n{description}\n\nExample: `{call}` returns `{example['expected']!r}`.",
    )


def program_prompt(problem: str, starter_code: str) -> Prompt:
    """A contest problem: a program on standard input and output, or code that completes ``starter_code``."""
    if starter_code.strip():
        task = f"Complete this code, keeping its names:\n\n```python\n{starter_code.rstrip()}\n```"
    else:
        task = "Write a program that reads standard input and writes the result to standard output."
    return _chat(
        "You solve programming problems in Python. Think as briefly as you can, then give the whole solution in one "
        "```python block.",
        f"{problem.strip()}\n\n{task}",
    )


def tool_prompt(functions: Sequence[Mapping[str, Any]], request: str) -> Prompt:
    """A request for calls as ``Action:`` and ``Action Input:`` lines. ``functions`` have a name, a description and a
    JSON schema.

    The thought before the calls is what tells one right answer from another: bare calls are mostly equal in text, and
    peers of equal text are never shown twice.
    """
    listed = "\n".join(json.dumps(f, ensure_ascii=False) for f in functions)
    return _chat(
        f"You answer requests by calling functions. These functions are available:\n{listed}\n\n"
        "Answer each request in this form, with one Action and one Action Input line for each call, in the order in "
        "which the calls are to happen:\n"
        "Thought: one or two sentences that say, in your own words, what the user wants and where in the request each "
        "argument is stated\n"
        "Action: the name of the function\n"
        "Action Input: its arguments as a JSON object\n"
        "Give the arguments that the request states, and leave out optional ones that it does not mention.",
        request,
    )


def action_prompt(documentation: str, request: str) -> Prompt:
    """A request for calls as ``Action:`` and ``Action Input:`` lines, for tools documented in plain text."""
    return _chat(
        f"You answer requests by calling tools. These tools are available:\n{documentation.strip()}\n\n"
        "First say in one line, after 'Thought:', what you need. Then write each call as two lines: 'Action:' with "
        "the name of the tool, and 'Action Input:' with its parameters as a JSON object.",
        request,
    )


def _chat(system: str, user: str) -> Prompt:
    return ({"role": "system", "content": system}, {"role": "user", "content": user})
