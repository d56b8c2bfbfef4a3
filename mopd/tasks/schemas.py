"""Readers of one row each: from a benchmark's own fields to prompt, verifier and reference.

A reader yields a ``Draft`` for every prompt in the row, or a ``Rejected`` with the reason; it yields nothing for a row
that is not meant (another level, another kind of question), and raises ValueError if the row as a whole is malformed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mopd.rollouts import Prompt
from mopd.tasks.livecodebench import TIME_LIMIT_S, code_reference, time_limits
from mopd.tasks.prompts import action_prompt, choice_prompt, math_prompt, program_prompt

__all__ = [
    "Draft",
    "Rejected",
    "RowReader",
    "action_calls",
    "read_contest",
    "read_deepmath",
    "read_gsm8k",
    "read_livecodebench",
    "read_mathematics",
    "read_sciknoweval",
    "read_sdpo",
    "read_toolalpaca",
]

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A task item without its id and task; fields as in ``TaskItem``."""

    prompt: Prompt
    verifier: str
    reference: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """One prompt of a row that cannot be used."""

    reason: str


RowReader = Callable[[Row], Iterator[Draft | Rejected]]


def read_mathematics(
    row: Row, *, question: str = "problem", answer: str = "answer", keep: Sequence[str] = ()
) -> Iterator[Draft | Rejected]:
    """A problem and its final answer; ``keep`` names the columns that go into the metadata."""
    yield Draft(
        prompt=math_prompt(_text(row, question)),
        verifier="math",
        reference={"answer": _answer(row, answer)},
        metadata={name: row[name] for name in keep if row.get(name) is not None},
    )


def read_gsm8k(row: Row) -> Iterator[Draft | Rejected]:
    """``question``, and ``answer``: a worked solution that ends in ``#### 42``."""
    solution = _text(row, "answer")
    _, mark, final = solution.rpartition("####")
    if not mark or not final.strip():
        raise ValueError("the answer has no final value after '####'")
    yield Draft(
        prompt=math_prompt(_text(row, "question")),
        verifier="math",
        reference={"answer": final.strip().replace(",", "")},
    )


def read_livecodebench(row: Row) -> Iterator[Draft | Rejected]:
    """See ``mopd.tasks.livecodebench``."""
    yield Draft(
        prompt=program_prompt(_text(row, "question_content"), _text(row, "starter_code", default="")),
        verifier="code",
        reference=code_reference(row),
        metadata={
            name: str(row[name])
            for name in ("question_id", "platform", "difficulty", "contest_date")
            if row.get(name) is not None
        },
    )


def read_sciknoweval(row: Row, *, domains: Sequence[str] = ()) -> Iterator[Draft | Rejected]:
    """Multiple-choice questions of level L3: ``question``, ``choices`` {text, label}, ``answerKey``, ``domain``,
    ``type`` (mcq-4-choices, mcq-2-choices, filling, ...), ``details`` {level, task, subtask}.

    Rows of other levels and types yield nothing, and neither do those of other domains if ``domains`` are given.
    """
    details = row.get("details")
    if not isinstance(details, Mapping) or not isinstance(row.get("domain"), str):
        raise ValueError("expected a text in domain and an object in details")
    if details.get("level") != "L3" or not str(row.get("type")).startswith("mcq"):
        return
    domain = row["domain"].lower()
    domain = "materials" if domain == "material" else domain
    if domains and domain not in domains:
        return
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise ValueError("expected an object {text, label} in choices")
    texts, labels = list(choices.get("text") or ()), list(choices.get("label") or ())
    if not all(isinstance(value, str) for value in (*texts, *labels)):
        raise ValueError("the texts and labels of choices must be texts")
    gold = row.get("answerKey")
    if len(texts) != len(labels) or len(texts) < 2 or gold not in labels:
        raise ValueError(f"{len(texts)} choices with {len(labels)} labels and the answer {gold!r}")
    yield Draft(
        prompt=choice_prompt(_text(row, "question"), texts, labels),
        verifier="choice",
        reference={"answer": gold, "options": len(texts)},
        metadata={"domain": domain, "topic": details.get("task")},
    )


def read_toolalpaca(row: Row) -> Iterator[Draft | Rejected]:
    """One API: ``NLDocumentation``, ``Instructions`` (requests) and ``Golden_Answers`` (per request a list of
    {Action, Action_Input}, the latter JSON as text)."""
    requests, golds = row.get("Instructions"), row.get("Golden_Answers")
    if not isinstance(requests, Sequence) or not isinstance(golds, Sequence) or len(requests) != len(golds):
        raise ValueError("expected lists of the same length in Instructions and Golden_Answers")
    documentation = _text(row, "NLDocumentation")
    for number, (request, gold) in enumerate(zip(requests, golds, strict=True), 1):
        try:
            if not isinstance(request, str) or not request.strip():
                raise ValueError(f"expected a text, got {request!r}"[:200])
            yield Draft(
                prompt=action_prompt(documentation, request),
                verifier="tool_call",
                reference={"calls": action_calls(gold)},
                metadata={"topic": row.get("Name")},
            )
        except ValueError as error:
            yield Rejected(reason=f"instruction {number}: {error}")


def read_sdpo(row: Row) -> Iterator[Draft | Rejected]:
    """The training format of lasgroup/SDPO (``data/load_dataset.py``): ``prompt``, ``system``, ``answer``, ``tests``,
    ``kind`` and ``dataset``; "-" stands for a missing value. The prompt is taken over as it is."""
    kind = row.get("kind")
    if kind not in _SDPO_REFERENCES:
        raise ValueError(f"kind must be one of {', '.join(_SDPO_REFERENCES)}, got {kind!r}")
    verifier, reference = _SDPO_REFERENCES[kind]
    system = row.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    yield Draft(
        prompt=(*messages, {"role": "user", "content": _text(row, "prompt")}),  # type: ignore[arg-type]
        verifier=verifier,
        reference=reference(row),
        metadata={name: row[name] for name in ("dataset", "idx") if row.get(name) is not None},
    )


def action_calls(gold: object) -> list[dict[str, Any]]:
    """Gold calls from ToolAlpaca's list of {Action, Action_Input}.

    Raises:
        ValueError: if it is no such list, or an input is no JSON object.
    """
    if not isinstance(gold, Sequence) or isinstance(gold, str):
        raise ValueError(f"expected a list of gold calls, got {type(gold).__name__}")
    calls = []
    for call in gold:
        if not isinstance(call, Mapping) or not isinstance(call.get("Action"), str):
            raise ValueError("a gold call must be an object with Action and Action_Input")
        arguments = call.get("Action_Input")
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
        if not isinstance(arguments, Mapping):
            raise ValueError(f"the input of {call['Action']} must be a JSON object, got {type(arguments).__name__}")
        calls.append({"name": call["Action"], "arguments": dict(arguments)})
    return calls


def _sdpo_choice(row: Row) -> dict[str, Any]:
    labels = re.findall(r"^([A-Z])[:.)] ", _text(row, "prompt"), flags=re.MULTILINE)
    gold = _text(row, "answer").strip()
    if gold not in labels:
        raise ValueError(f"the answer {gold!r} is none of the prompt's options {labels}")
    return {"answer": gold, "options": len(labels)}


def _sdpo_tools(row: Row) -> dict[str, Any]:
    return {"calls": action_calls(json.loads(_text(row, "answer")))}


def _sdpo_math(row: Row) -> dict[str, Any]:
    return {"answer": _answer(row, "answer")}


def _sdpo_code(row: Row) -> dict[str, Any]:
    """``tests`` is JSON text: {inputs, outputs, testtype, fn_name, time_limit}."""
    tests = json.loads(_text(row, "tests"))
    if not isinstance(tests, dict) or not isinstance(tests.get("inputs"), list):
        raise ValueError("tests must be a JSON object with inputs, outputs and testtype")
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError(f"tests have {len(inputs)} inputs and {len(outputs or ())} outputs")
    keyword = [value for value in inputs if isinstance(value, dict)]
    if tests.get("testtype") == "functional" and keyword and len(keyword) == len(inputs):
        reference: dict[str, Any] = {
            "kind": "function",
            "entry_point": tests["fn_name"],
            "tests": [
                {"args": [], "kwargs": value, "expected": json.loads(out)}
                for value, out in zip(inputs, outputs, strict=True)
            ],
            **time_limits(len(inputs), TIME_LIMIT_S),
        }
    else:
        cases = [
            {"input": value, "output": out, "testtype": tests.get("testtype")}
            for value, out in zip(inputs, outputs, strict=True)
        ]
        reference = code_reference(
            {
                "public_test_cases": cases,
                "private_test_cases": [],
                "metadata": {"func_name": tests.get("fn_name")},
            }
        )
    if tests.get("time_limit") is not None:
        reference |= time_limits(len(reference["tests"]), float(tests["time_limit"]))
    return reference


_SDPO_REFERENCES: dict[str, tuple[str, Callable[[Row], dict[str, Any]]]] = {
    "mcq": ("choice", _sdpo_choice),
    "tooluse": ("tool_call", _sdpo_tools),
    "math": ("math", _sdpo_math),
    "code": ("code", _sdpo_code),
}


def _text(row: Row, name: str, *, default: str | None = None) -> str:
    value = row.get(name)
    if default is not None and value in (None, ""):
        return default
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text in {name}, got {value!r}"[:200])
    return value


def _answer(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    text = _text(row, name).strip()
    if text == "-":
        raise ValueError(f"{name} is '-', which stands for a missing one")
    return text


read_deepmath: RowReader = partial(
    read_mathematics, question="question", answer="final_answer", keep=("difficulty", "topic")
)
read_contest: RowReader = partial(read_mathematics, keep=("problem_idx", "problem_type", "id"))
