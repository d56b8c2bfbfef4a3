"""Where a wrong program is wrong: lines that only its failing tests execute.

Tests are run once more in the sandbox with line tracing (``mopd.verifiers.code.run_code``). Of a program that passes
some tests and fails others, a line is *suspect* if a failing test executes it and no passing one does; the other
executed lines are taken to be right. That is the set difference of spectrum-based fault localisation (Renieres and
Reiss, ASE 2003): a proxy, not an exact label. An error in a line that every test executes is not found, so a program
without a suspect line has no label. Lines that no test executes take no part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import polars as pl

from mopd.localisation import STEPS
from mopd.verifiers.code import CodeResult, code_span, run_code

__all__ = ["SOURCE", "line_spans", "suspect_lines", "suspect_steps"]

SOURCE = "code"
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
"""A line as Python counts them."""


def suspect_lines(result: CodeResult) -> dict[int, bool] | None:
    """Every executed line, from 1, and whether it is suspect.

    None where no test passed, none failed after it began, or the lines were not recorded.
    """
    passed = [test.lines for test in result.tests if test.status == "passed" and test.lines is not None]
    failed = [test.lines for test in result.tests if test.status != "passed" and test.lines is not None]
    if not passed or not failed:
        return None
    of_passed = {line for lines in passed for line in lines}
    of_failed = {line for lines in failed for line in lines}
    return {line: line not in of_passed for line in sorted(of_passed | of_failed)}


def line_spans(code: str) -> list[tuple[int, int]]:
    """Characters of each line, without its indentation and the blanks at its end."""
    spans = []
    for match in _LINE.finditer(code):
        line = match[0]
        indent = len(line) - len(line.lstrip())
        spans.append((match.start() + min(indent, len(line.rstrip())), match.start() + len(line.rstrip())))
    return spans


def suspect_steps(
    programs: Iterable[tuple[str, str, Mapping[str, Any]]],
    *,
    allow_unsandboxed: bool = False,
    progress: Callable[[int], None] | None = None,
) -> pl.DataFrame:
    """Executed lines of programs as steps of the source ``code``.

    Args:
        programs: (rollout id, response, reference of ``mopd.verifiers.code``) each.
        allow_unsandboxed: run code even where bubblewrap is missing.
        progress: called with the number of programs that were run.

    Returns:
        ``STEPS``; nothing of a program without code, or without a passing and a failing test.

    Raises:
        SandboxUnavailable: without bubblewrap, unless ``allow_unsandboxed``.
    """
    rows: list[tuple[Any, ...]] = []
    for n, (rollout_id, response, reference) in enumerate(programs, 1):
        result = run_code(response, reference, allow_unsandboxed=allow_unsandboxed, trace=True)
        span = code_span(response)
        lines = None if result is None or span is None else suspect_lines(result)
        if result is not None and span is not None and lines is not None:
            spans = line_spans(result.code)
            rows += [
                (rollout_id, SOURCE, step, span[0] + spans[line - 1][0], span[0] + spans[line - 1][1], suspect)
                for step, (line, suspect) in enumerate(lines.items())
                if line <= len(spans)  # the code can lie about its lines
            ]
        if progress:
            progress(n)
    return pl.DataFrame(rows, schema=STEPS, orient="row")
