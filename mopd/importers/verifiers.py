"""The verifiers library: ``results.jsonl`` (v0, with ``metadata.json`` beside it) and ``traces.jsonl`` (v1).

``results.jsonl``: ``example_id``, ``prompt`` and ``completion`` (messages, or text in completion mode),
``reward``, ``error``, ``is_truncated``, … ``answer`` is the gold answer there and is not taken for an
extracted one. A row with an ``error`` has reward 0.0 because nothing was scored: it is unjudged here.

``traces.jsonl`` (also written by prime-rl): a trace is a graph of message nodes with ``parent``, ``sampled``,
``token_ids`` and ``mask``; ``rewards`` are named, each with a score and a weight, and the reward is their
weighted sum, null if one of them was not scored.

A rollout here is one answer to one prompt, so a trace with several sampled turns drops out with that reason.

Schemas read from: PrimeIntellect-ai/verifiers ``verifiers/utils/save_utils.py``, ``verifiers/v1/trace.py``,
``verifiers/v1/graph.py``, ``verifiers/v1/cli/output.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mopd.importers.base import FileContext, Record, Row, RowError
from mopd.importers.prompts import as_prompt
from mopd.importers.values import (
    as_ids,
    as_messages,
    as_optional_text,
    as_reward,
    as_sampling,
    as_step,
    as_text,
    has_messages,
    kind_of,
)

__all__ = ["metadata_of", "parse_result", "parse_trace"]

ERROR_NOTE = "rollout ended in an error: unjudged"
SEVERAL_TURNS = "several sampled turns: a rollout is one answer to one prompt"
FINISHED = {"stop": True, "tool_calls": True, "length": False}
TRUNCATING = {"max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "compaction_failed"}


def metadata_of(context: FileContext) -> Mapping[str, Any]:
    """What ``metadata.json`` beside ``results.jsonl`` says, or nothing."""
    try:
        value = json.loads((context.path.parent / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_result(record: Record, context: FileContext) -> Row:
    completion = record.get("completion")
    if has_messages(completion):
        messages = as_messages(completion, "completion")
        if [m["role"] for m in messages] != ["assistant"]:
            raise RowError(SEVERAL_TURNS, f"{len(messages)} messages in the completion")
        response = messages[0]["content"]
    else:
        response = as_text(completion, "completion")
    prompt, notes = as_prompt(record.get("prompt"), "prompt", context.options.prompt_as)
    failed = record.get("error") is not None
    reward, reward_notes = as_reward(record.get("reward"), "reward")
    truncated = record.get("is_truncated")
    example = record.get("example_id", record.get("id"))
    return Row(
        prompt=prompt,
        response=response,
        reward=None if failed else reward,
        finished=not truncated if isinstance(truncated, bool) and not failed else None,
        policy=as_optional_text(context.side.get("model"), "model"),
        step=as_step(record.get("step"), context.step),
        sampling=as_sampling(context.side.get("sampling_args")),
        task=as_optional_text(record.get("task"), "task") or as_optional_text(context.side.get("env_id"), "env_id"),
        group=None if example is None else f"{example}",
        notes=notes + reward_notes + ((ERROR_NOTE,) if failed else ()),
    )


def parse_trace(record: Record, context: FileContext) -> Row:
    nodes = mappings(record.get("nodes"), "nodes")
    sampled = [index for index, node in enumerate(nodes) if node.get("sampled") is True]
    if not sampled:
        raise RowError("no sampled message in the trace")
    if len(sampled) > 1:
        raise RowError(SEVERAL_TURNS, f"{len(sampled)} of them")
    answer = nodes[sampled[0]]
    prompt, notes = as_prompt([n.get("message") for n in path_to(nodes, answer)], "nodes", context.options.prompt_as)
    call = next((c for c in mappings(record.get("calls") or [], "calls") if c.get("node") == sampled[0]), {})
    failed = bool(record.get("errors")) or record.get("ok") is False
    reward, reward_notes = weighted_reward(record.get("rewards"))
    agent = record.get("agent")
    config = agent.get("config") if isinstance(agent, Mapping) else None
    model = call.get("model") or (config.get("model") if isinstance(config, Mapping) else None)
    return Row(
        prompt=prompt,
        response=as_messages([answer.get("message")], "nodes.message")[0]["content"],
        reward=None if failed else reward,
        response_ids=sampled_ids(answer),
        finished=finish_of(record, call, answer),
        policy=as_optional_text(model, "model"),
        step=context.step,
        sampling=as_sampling(call.get("sampling")),
        task=task_name(record.get("task")),
        group=task_key(record.get("task")),
        notes=notes + reward_notes + ((ERROR_NOTE,) if failed else ()),
    )


def mappings(value: object, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise RowError(f"field {name!r} is not a list of objects", kind_of(value))
    return value


def path_to(nodes: Sequence[Mapping[str, Any]], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nodes from the root to the parent of ``node``."""
    path: list[Mapping[str, Any]] = []
    parent = node.get("parent")
    while parent is not None:
        inside = isinstance(parent, int) and not isinstance(parent, bool) and 0 <= parent < len(nodes)
        if not inside or len(path) >= len(nodes):
            raise RowError("the message graph is broken", f"parent {kind_of(parent)} of {len(nodes)} nodes")
        path.append(nodes[parent])
        parent = nodes[parent].get("parent")
    return path[::-1]


def sampled_ids(node: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The ids the policy sampled: those of the node under its mask."""
    ids, mask = as_ids(node.get("token_ids"), "token_ids"), node.get("mask")
    if ids is None:
        return None
    if not isinstance(mask, list) or len(mask) != len(ids):
        raise RowError("field 'mask' does not match 'token_ids'")
    return tuple(i for i, kept in zip(ids, mask, strict=True) if kept) or None


def weighted_reward(value: object) -> tuple[float | None, tuple[str, ...]]:
    """Sum of score times weight; None if nothing was scored or a part was not."""
    if not isinstance(value, Mapping) or not value:
        return None, ()
    total, notes, unscored = 0.0, (), False
    for name, part in value.items():
        score, weight = (part.get("score"), part.get("weight", 1.0)) if isinstance(part, Mapping) else (part, 1.0)
        number, more = as_reward(score, f"rewards.{name}"[:80])
        factor, _ = as_reward(weight, f"rewards.{name}.weight"[:80])
        notes += more
        if number is None or factor is None:
            unscored = True
        else:
            total += number * factor
    return (None, notes) if unscored else (as_reward(total, "rewards")[0], notes)


def finish_of(record: Record, call: Mapping[str, Any], node: Mapping[str, Any]) -> bool | None:
    if as_optional_text(record.get("stop_condition"), "stop_condition") in TRUNCATING:
        return False
    reason = call.get("finish_reason") or node.get("finish_reason")
    return FINISHED.get(reason) if isinstance(reason, str) else None


def task_name(task: object) -> str | None:
    return as_optional_text(task.get("type"), "task.type") if isinstance(task, Mapping) else None


def task_key(task: object) -> str | None:
    """The example's identity: its key, its hash, or its number in the data."""
    if not isinstance(task, Mapping):
        return None
    data = task.get("data") if isinstance(task.get("data"), Mapping) else task
    assert isinstance(data, Mapping)
    keys = (task.get("key"), task.get("hash"), data.get("idx"), data.get("example_id"))
    return next((f"{key}" for key in keys if isinstance(key, str | int)), None)
