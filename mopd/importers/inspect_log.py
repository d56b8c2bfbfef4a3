"""inspect_ai's eval logs in JSON (``inspect log convert --to json`` makes them of ``.eval`` files).

A log is one object with a header (``eval``: task, model, run id; ``plan``) and ``samples``. A sample has
``id``, ``epoch``, ``input``, ``messages``, ``output`` and ``scores``; the epochs of one id make the group.
The prompt is the messages before the one that the model generated, and ``input`` where there are none. Scores
follow inspect's own conversion: C and "yes" are 1, P is 0.5, I, N and "no" are 0. A sample that ended in an
error is unjudged. With several scorers, or a score that is a mapping, ``reward_key`` says which: ``"scorer"``
or ``"scorer/key"``.

Of several choices in one output only the first is read.

Schema read from: UKGovernmentBEIS/inspect_ai ``src/inspect_ai/log/_log.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mopd.importers.base import FileContext, ImportFailure, ImportOptions, Item, Record, Row, RowError
from mopd.importers.prompts import as_question
from mopd.importers.reading import read_document
from mopd.importers.values import (
    as_optional_text,
    as_reward,
    as_sampling,
    has_messages,
    kind_of,
    message_text,
)
from mopd.importers.verifiers import ERROR_NOTE, SEVERAL_TURNS

__all__ = ["parse_inspect", "read_inspect"]

FINISHED = {"stop": True, "tool_calls": True, "max_tokens": False, "model_length": False}
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
ATTACHMENT = "attachment://"
CHOICES_NOTE = "only the first of several choices was read"


def read_inspect(path: Path, options: ImportOptions) -> Iterator[Item]:
    """Samples of a log, each with the log's header under ``_log``."""
    header: Mapping[str, Any] = {}
    for item in read_document(path, options, "samples"):
        if item.record is None:
            yield item
        elif item.line is None:
            header = item.record
        else:
            yield Item(line=item.line, record={**item.record, "_log": header})


def parse_inspect(record: Record, context: FileContext) -> Row:
    record = {**record, **resolved(record)}
    prompt, message = conversation(record)
    question, notes = as_question(prompt, "input", context.options.prompt_as)
    log = record.get("_log")
    run = log.get("eval") if isinstance(log, Mapping) else None
    run = run if isinstance(run, Mapping) else {}
    failed = record.get("error") is not None
    score = chosen_score(record.get("scores"), context.options.reward_key)
    reward, reward_notes = as_reward(letter_value(score.get("value")), "scores")
    choices = choices_of(record)
    reason = choices[0].get("stop_reason") if choices else None
    response = message_text(message, "output")
    told = as_optional_text(score.get("explanation"), "explanation")
    return Row(
        prompt=question,
        response=response,
        reward=None if failed else reward,
        finished=FINISHED.get(reason) if isinstance(reason, str) else None,
        answer=as_optional_text(score.get("answer"), "answer"),
        # many scorers give the response itself as their explanation, which is no feedback
        feedback=None if told is None or told.strip() in response else told,
        policy=as_optional_text(run.get("model"), "model"),
        step=context.step,
        sampling=as_sampling(run.get("model_generate_config")),
        task=as_optional_text(run.get("task"), "task"),
        group=f"{run.get('run_id')}/{run.get('task_id')}/{record.get('id')}",
        notes=notes + reward_notes + ((ERROR_NOTE,) if failed else ()) + ((CHOICES_NOTE,) if len(choices) > 1 else ()),
    )


def choices_of(record: Record) -> list[Mapping[str, Any]]:
    output = record.get("output")
    choices = output.get("choices") if isinstance(output, Mapping) else None
    return [c for c in choices if isinstance(c, Mapping)] if isinstance(choices, list) else []


def conversation(record: Record) -> tuple[object, Mapping[str, Any]]:
    """What the model was asked, and the message it answered with."""
    messages = record.get("messages")
    if has_messages(messages) and isinstance(messages, list):
        generated = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and m.get("source") != "input"]
        if len(generated) > 1:
            raise RowError(SEVERAL_TURNS, f"{len(generated)} of them")
        if generated and generated[0] > 0:
            return messages[: generated[0]], messages[generated[0]]
    choices = choices_of(record)
    message = choices[0].get("message") if choices else None
    if not isinstance(message, Mapping):
        raise RowError("the sample has no output")
    return record.get("input"), message


def chosen_score(scores: object, reward_key: str | None) -> Mapping[str, Any]:
    """The score that counts; empty if the sample was not scored."""
    if not isinstance(scores, Mapping) or not scores:
        return {}
    scorer, _, key = (reward_key or "").partition("/")
    if not scorer and len(scores) > 1:
        names = ", ".join(map(str, scores))
        raise ImportFailure(
            f"the log has several scorers: {names}; say which with reward_key={next(iter(scores))!r} (--reward-key)"
        )
    score = scores.get(scorer) if scorer else next(iter(scores.values()))
    if not isinstance(score, Mapping):
        return {}
    value = score.get("value")
    if isinstance(value, Mapping):
        if key not in value:
            first = next(iter(value), "key")
            name = scorer or next(iter(scores))
            raise ImportFailure(
                f"scorer {name!r} gives several values: {', '.join(map(str, value))}; say which with "
                f"reward_key='{name}/{first}' (--reward-key)"
            )
        value = value[key]
    return {**score, "value": value}


def letter_value(value: object) -> object:
    """inspect's letter grades as numbers; everything else as it is."""
    if not isinstance(value, str):
        return value
    return LETTERS.get(value, LETTERS.get(value.lower(), value))


def resolved(record: Record) -> dict[str, Any]:
    """``input``, ``messages`` and ``output`` with references to the sample's attachments filled in."""
    attachments = record.get("attachments")
    fields = {name: record.get(name) for name in ("input", "messages", "output")}
    if not isinstance(attachments, Mapping) or not attachments:
        return fields

    def fill(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(ATTACHMENT):
            text = attachments.get(value.removeprefix(ATTACHMENT))
            if not isinstance(text, str):
                raise RowError("an attachment is missing", kind_of(value))
            return text
        if isinstance(value, Mapping):
            return {key: fill(part) for key, part in value.items()}
        return [fill(part) for part in value] if isinstance(value, list) else value

    return {name: fill(value) for name, value in fields.items()}
