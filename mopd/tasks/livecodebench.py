"""Rows of LiveCodeBench (livecodebench/code_generation_lite), release by release.

A row has ``question_content``, ``starter_code`` (empty for programs on standard input), ``public_test_cases`` (JSON
text), ``private_test_cases`` (JSON text, or base64 of zlib of a *pickle* of JSON text) and ``metadata`` (JSON text,
with ``func_name`` for functions). Judged by all of its tests, with 6 seconds each, the limit of its authors' harness,
and with as many times that for all of them together as there are tests, but no more than ``MOST_SECONDS``. A program
that is right but needs longer than that in all is a failure; without the ceiling one that hangs on each of a hundred
tests would hold a core for ten minutes.

A pickle can run any code when it is loaded. This one needs no more than a text, so it is read by an unpickler that
refuses every global, and whatever it gives has to be a text.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ["MOST_SECONDS", "TIME_LIMIT_S", "code_reference", "time_limits"]

TIME_LIMIT_S = 6.0
MOST_SECONDS = 180.0
"""Ceiling of the wall-clock seconds of all tests together: thirty tests that use up their limit."""
_MOST_BYTES = 1 << 30  # of one problem's tests, unpacked


def code_reference(row: Mapping[str, Any]) -> dict[str, Any]:
    """The code verifier's reference for a row.

    Raises:
        ValueError: if the tests are missing, cannot be unpacked safely, or are of an unknown or mixed type.
    """
    tests = _tests(row, "public_test_cases") + _tests(row, "private_test_cases")
    kinds = {test.get("testtype") for test in tests}
    if not tests or len(kinds) != 1:
        raise ValueError(f"expected tests of one testtype, got {len(tests)} tests of {sorted(map(str, kinds))}")
    kind = kinds.pop()
    if kind == "stdin":
        programs = [{"stdin": _text(test, "input"), "stdout": _text(test, "output")} for test in tests]
        return {"kind": "stdin", "tests": programs, **time_limits(len(programs), TIME_LIMIT_S)}
    if kind == "functional":
        return {
            "kind": "function",
            "entry_point": _function_name(row),
            "tests": [_function_test(test) for test in tests],
            **time_limits(len(tests), TIME_LIMIT_S),
        }
    raise ValueError(f"testtype must be 'stdin' or 'functional', got {kind!r}")


def time_limits(tests: int, seconds: float) -> dict[str, float]:
    """The reference's limits where each of some tests has so many seconds of wall-clock time.

    All together have the sum, cut to ``MOST_SECONDS`` (though never below the limit of one test).
    """
    return {"time_limit_s": seconds, "total_time_limit_s": max(seconds, min(tests * seconds, MOST_SECONDS))}


def _tests(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = json.loads(_unpack(value, name))
    if not isinstance(value, list) or not all(isinstance(test, dict) for test in value):
        raise ValueError(f"{name} must be a list of objects, got {type(value).__name__}")
    return value


def _unpack(packed: str, name: str) -> str:
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
        if unzip.unconsumed_tail:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        text = _TextUnpickler(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, IndexError, ValueError) as error:
        raise ValueError(f"{name} cannot be unpacked: {error}") from error
    if not isinstance(text, str):
        raise ValueError(f"{name} must unpack to a text, got {type(text).__name__}")
    return text


class _TextUnpickler(pickle.Unpickler):
    """Loads plain values only: without globals no class can be built and no function called."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"the pickle asks for {module_name}.{global_name}; refused")

    def persistent_load(self, pid: object, /) -> NoReturn:
        raise pickle.UnpicklingError("the pickle refers to an outside object; refused")


def _text(test: Mapping[str, Any], name: str) -> str:
    if not isinstance(test.get(name), str):
        raise ValueError(f"a test's {name} must be a text, got {type(test.get(name)).__name__}")
    return test[name]


def _function_test(test: Mapping[str, Any]) -> dict[str, Any]:
    """Each line of the input is one argument as JSON; the output is the value as JSON."""
    arguments = [json.loads(line) for line in _text(test, "input").splitlines() if line.strip()]
    return {"args": arguments, "kwargs": {}, "expected": json.loads(_text(test, "output"))}


def _function_name(row: Mapping[str, Any]) -> str:
    metadata = row.get("metadata")
    values = json.loads(metadata) if isinstance(metadata, str) and metadata.strip() else metadata
    name = values.get("func_name") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("the metadata names no func_name")
    return name
