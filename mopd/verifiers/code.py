"""Model-written Python against unit tests, run by `mopd.verifiers.sandbox`.

Reference, as JSON values::

    {"kind": "function", "entry_point": "f", "tests": [{"args": [...], "kwargs": {...}, "expected": ...}]}
    {"kind": "stdin", "tests": [{"stdin": "...", "stdout": "..."}]}

and, each optional, ``time_limit_s``, ``total_time_limit_s``, ``memory_mb``, ``float_tolerance`` (default
1e-6; for programs, numbers in the output are compared as text unless it is given), ``prelude`` (Python run
before a function's code). The entry point may also be a method of a ``class Solution``; such code gets the
imports that LeetCode provides.

The reward is 1.0 if every test passes and 0.0 otherwise; the share of passed tests is in `CodeResult` alone,
because a partial credit is no success. The expected answers stay in this process: the sandbox gets inputs and
gives back values, and the comparison is made here, on plain data.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd.verifiers import extract
from mopd.verifiers.base import Verdict
from mopd.verifiers.sandbox import Limits, run_tests

__all__ = ["CodeResult", "TestResult", "code_span", "extract_code", "judge", "run_code"]

_FENCE = re.compile(
    r"^[ \t]*(`{3,8}|~{3,8})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON_NAMES = frozenset({"python", "python3", "py"})
_SHOWN_CHARACTERS = 500
TRACE_SLOWDOWN = 5
"""How much longer a traced test may take: most of its lines call back into the tracer."""
_STATUS_TEXT = {
    "wrong_answer": "gave a wrong answer",
    "exception": "raised an exception",
    "timeout": "exceeded the time limit",
    "memory": "exceeded the memory limit",
    "processes": "tried to start too many processes or threads",
    "killed": "was killed",
    "exited_early": "ended the process before it gave an answer",
    "output_too_large": "wrote too much output",
    "not_plain_data": "returned something that is not plain data",
    "forged_result": "tampered with the result channel",
    "syntax_error": "is not valid Python",
    "missing_entry_point": "does not define what was asked for",
    "sandbox_ended": "ended the sandbox",
    "not_run": "was not run",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TestResult:
    """What came out of one test.

    Attributes:
        status: "passed", or the way in which it failed (a key of ``_STATUS_TEXT``).
        detail: the exception, signal or limit, if there is one.
        output: for a function its value, for a program its standard output, cut to 500 characters; else None.
        seconds: wall-clock time of the test, or None if it was not run to its end.
        lines: of the code, from 1, that the test executed, also if it was killed; None unless they were asked for.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    status: str
    detail: str | None = None
    output: str | None = None
    seconds: float | None = None
    lines: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeResult:
    """What came out of one rollout: the code and one result a test, in the order of the reference."""

    code: str
    tests: tuple[TestResult, ...]
    feedback: str | None

    @property
    def passed(self) -> int:
        return sum(test.status == "passed" for test in self.tests)

    @property
    def fraction(self) -> float:
        """Share of the tests that passed, in [0, 1]: partial credit, not a success."""
        return self.passed / len(self.tests)

    @property
    def success(self) -> bool:
        return self.passed == len(self.tests)


def judge(response: str, reference: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Verdict:
    """Run the code of a response against the tests of its reference.

    Raises:
        SandboxUnavailable: without bubblewrap, unless ``allow_unsandboxed``.
        ValueError: if the reference is malformed.
    """
    result = run_code(response, reference, allow_unsandboxed=allow_unsandboxed)
    if result is None:
        return Verdict(reward=0.0, feedback="The response holds no Python code. Put it in a ```python block.")
    return Verdict(reward=1.0 if result.success else 0.0, answer=result.code, feedback=result.feedback)


def run_code(
    response: str, reference: Mapping[str, Any], *, allow_unsandboxed: bool = False, trace: bool = False
) -> CodeResult | None:
    """As `judge`, with a result for every test; None if the response holds no code.

    With ``trace`` the lines that each test executes are recorded, for which the time limits are ``TRACE_SLOWDOWN``
    times as long.
    """
    kind, tests = _checked(reference)
    code = extract_code(response)
    if code is None:
        return None
    given = ("time_limit_s", "total_time_limit_s", "memory_mb")
    limits = Limits(**{name: reference[name] for name in given if reference.get(name) is not None})
    if trace:
        slower = (limits.time_limit_s * TRACE_SLOWDOWN, limits.total_time_limit_s * TRACE_SLOWDOWN)
        limits = dataclasses.replace(limits, time_limit_s=slower[0], total_time_limit_s=slower[1])
    job: dict[str, Any] = {"kind": kind, "code": code, "tests": [_inputs(test, kind) for test in tests], "trace": trace}
    if kind == "function":
        job |= {"entry_point": reference["entry_point"], "prelude": reference.get("prelude")}
    reports = run_tests(job, limits=limits, allow_unsandboxed=allow_unsandboxed)
    tolerance = reference.get("float_tolerance")
    results = tuple(
        _compare_function(report, test, 1e-6 if tolerance is None else tolerance)
        if kind == "function"
        else _compare_program(report, test, tolerance)
        for report, test in zip(reports, tests, strict=True)
    )
    if trace:
        results = tuple(
            dataclasses.replace(result, lines=None if report.get("lines") is None else tuple(report["lines"]))
            for result, report in zip(results, reports, strict=True)
        )
    return CodeResult(code=code, tests=results, feedback=_feedback(results, job["tests"]))


def extract_code(response: str) -> str | None:
    """The code of a response: last block fenced as Python, else the last fenced one, else all of it if
    it parses.

    An unclosed last block (a response that was cut off) counts. None if there is no code.
    """
    text = extract.after_thinking(response)
    blocks = [(match[2].lower(), match[3]) for match in _FENCE.finditer(text)]
    python = [body for language, body in blocks if language in _PYTHON_NAMES and body.strip()]
    other = [body for language, body in blocks if body.strip()]
    if python or other:
        return (python or other)[-1]
    try:
        return text if ast.parse(text).body and not _is_prose(text) else None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def code_span(response: str) -> tuple[int, int] | None:
    """Where the code of a response stands in it, as characters; None if there is none."""
    code = extract_code(response)
    start = -1 if code is None else response.rfind(code)
    return None if code is None or start < 0 else (start, start + len(code))


def _is_prose(text: str) -> bool:
    """A bare word or literal parses as Python ("Sorry", "42") and is no program."""
    return all(isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) for node in ast.parse(text).body)


def _checked(reference: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]]]:
    kind, tests = reference.get("kind"), reference.get("tests")
    if kind not in ("function", "stdin"):
        raise ValueError(f'the kind of a code reference must be "function" or "stdin", got {kind!r}')
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise ValueError("a code reference needs at least one test in its list `tests`")
    if kind == "function" and not isinstance(reference.get("entry_point"), str):
        raise ValueError("a code reference of kind function needs the name of its `entry_point`")
    required = ("args", "expected") if kind == "function" else ("stdin", "stdout")
    for index, test in enumerate(tests):
        missing = [name for name in required if not isinstance(test, Mapping) or name not in test]
        if missing:
            raise ValueError(f"test {index} of a code reference of kind {kind} lacks {missing}")
    return kind, tests


def _inputs(test: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The part of a test that the sandbox may see."""
    if kind == "stdin":
        return {"stdin": test["stdin"]}
    return {"args": list(test["args"]), "kwargs": dict(test.get("kwargs") or {})}


def _compare_function(report: Mapping[str, Any], test: Mapping[str, Any], tolerance: float) -> TestResult:
    if report["status"] != "returned":
        return _failed(report)
    try:
        value = _decode(report.get("value"))
        equal = _equal(value, test["expected"], tolerance)
        shown = _shown(value)
    except Exception as error:  # whatever the code sent: it must be a failure, and never leave the response unjudged
        return _failed({**report, "status": "forged_result", "detail": f"unreadable value: {type(error).__name__}"})
    return TestResult(status="passed" if equal else "wrong_answer", output=shown, seconds=report.get("seconds"))


def _compare_program(report: Mapping[str, Any], test: Mapping[str, Any], tolerance: float | None) -> TestResult:
    if report["status"] != "returned":
        return _failed(report)
    output = str(report.get("stdout") or "")
    equal = _same_output(output, str(test["stdout"]), tolerance)
    early = report.get("detail") is not None
    return TestResult(
        status="passed" if equal else "exited_early" if early and not output else "wrong_answer",
        detail=None if equal else report.get("detail"),
        output=_shorten(output),
        seconds=report.get("seconds"),
    )


def _failed(report: Mapping[str, Any]) -> TestResult:
    status = report["status"] if report["status"] in _STATUS_TEXT else "forged_result"
    detail = report.get("detail")
    return TestResult(status=status, detail=None if detail is None else str(detail), seconds=report.get("seconds"))


def _decode(value: Any) -> Any:
    """Plain data from the tagged JSON of the harness; anything else raises."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, list):
        return [_decode(item) for item in value]
    ((tag, content),) = value.items()
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return float(content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "tuple":
        return tuple(_decode(item) for item in content)
    if tag == "set":
        return {_hashable(_decode(item)) for item in content}
    if tag == "dict":
        return {_hashable(_decode(key)): _decode(item) for key, item in content}
    raise ValueError(f"unknown tag {tag!r}")


def _hashable(value: Any) -> Any:
    """A set inside a set or a key was a frozenset; the tag does not tell them apart."""
    if isinstance(value, tuple):
        return tuple(_hashable(item) for item in value)
    return frozenset(value) if isinstance(value, set) else value


def _equal(value: Any, expected: Any, tolerance: float) -> bool:
    """Equality with what JSON cannot tell apart forgiven: tuple and list, set and list, 1 and "1" as keys.

    Numbers are equal as values (1 and 1.0), within the tolerance, relative or absolute, if one is a float; a
    truth value is not a number.
    """
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        if isinstance(value, int) and isinstance(expected, int):
            return value == expected
        return _close(value, expected, tolerance)
    if isinstance(value, (set, frozenset)):
        value, expected = sorted(value, key=_order), _as_sorted(expected)
    if isinstance(value, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(
            _equal(one, other, tolerance) for one, other in zip(value, expected, strict=True)
        )
    if isinstance(value, dict) and isinstance(expected, Mapping):
        spelled = {key if isinstance(key, str) else _key(key): item for key, item in value.items()}
        wanted = {key if isinstance(key, str) else _key(key): item for key, item in expected.items()}
        return spelled.keys() == wanted.keys() and all(_equal(spelled[key], wanted[key], tolerance) for key in wanted)
    return type(value) is type(expected) and value == expected


def _as_sorted(expected: Any) -> Any:
    if not isinstance(expected, (list, tuple, set, frozenset)):
        return None
    return sorted(expected, key=_order)


def _order(item: Any) -> tuple[str, str]:
    """Key that sorts the members of two sets alike, also where one has a list for a member tuple or frozenset."""
    return _spelled(item, in_order=False), _spelled(item, in_order=True)


def _spelled(item: Any, *, in_order: bool) -> str:
    if isinstance(item, (list, tuple, set, frozenset)):
        parts = [_spelled(part, in_order=in_order) for part in item]
        return f"({', '.join(parts if in_order else sorted(parts))})"
    try:
        return repr(item)
    except ValueError:  # an integer of more digits than Python prints
        return hex(item)


def _key(key: Any) -> str:
    """A dictionary key as JSON spells it."""
    return (
        {True: "true", False: "false", None: "null"}.get(key, str(key))
        if key is None or key is True or key is False
        else str(key)
    )


def _close(value: float, expected: float, tolerance: float) -> bool:
    try:
        value, expected = float(value), float(expected)
    except OverflowError:
        return False
    if math.isnan(value) or math.isnan(expected):
        return math.isnan(value) and math.isnan(expected)
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


def _same_output(output: str, expected: str, tolerance: float | None) -> bool:
    """Equal up to blanks at line ends and at the end; with a tolerance, token by token."""
    ours = [line.rstrip() for line in output.rstrip().splitlines()]
    theirs = [line.rstrip() for line in expected.rstrip().splitlines()]
    if ours == theirs:
        return True
    if tolerance is None or len(ours) != len(theirs):
        return False
    return all(
        len(one.split()) == len(other.split())
        and all(_same_token(*pair, tolerance) for pair in zip(one.split(), other.split(), strict=True))
        for one, other in zip(ours, theirs, strict=True)
    )


def _same_token(token: str, expected: str, tolerance: float) -> bool:
    if token == expected:
        return True
    try:
        return _close(float(token), float(expected), tolerance)
    except ValueError:
        return False


def _feedback(results: Sequence[TestResult], inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """The first failed test: its input and what the program did.

    Not what was expected: a teacher that reads the feedback would be given the gold answer, and its signal
    would measure how well it copies.
    """
    failed = next((index for index, result in enumerate(results) if result.status != "passed"), None)
    if failed is None:
        return None
    result, test = results[failed], inputs[failed]
    passed = sum(one.status == "passed" for one in results)
    how = _STATUS_TEXT[result.status]
    lines = [f"{passed} of {len(results)} tests passed. On test {failed + 1} the code {how}."]
    if "stdin" in test:
        lines.append(f"Standard input: {_shorten(test['stdin'])}")
    else:
        arguments = [repr(value) for value in test["args"]]
        arguments += [f"{name}={value!r}" for name, value in test["kwargs"].items()]
        lines.append(f"Arguments: {_shorten(', '.join(arguments))}")
    if result.output is not None:
        lines.append(f"Output: {result.output}")
    if result.detail is not None:
        lines.append(f"Error: {_shorten(result.detail)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    try:
        return _shorten(repr(value))
    except ValueError:  # an integer of more digits than Python prints
        return f"(a {type(value).__name__} too long to be shown)"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
