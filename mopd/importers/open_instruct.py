"""open-instruct's ``{run}_rollouts_{shard}.jsonl``, with ``{run}_metadata.jsonl`` beside them.

A record has ``step``, ``prompt_idx`` (the group within the step), ``prompt_tokens``, ``response_tokens``,
``reward``, ``finish_reason``, ``dataset`` and no text at all, so the import needs the tokenizer's ``decode``.
The prompt is decoded with its special tokens, the response without; the response's ids are kept as they are.

Schema read from: allenai/open-instruct ``open_instruct/rl_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mopd.importers.base import FileContext, ImportFailure, ImportOptions, Record, Row, RowError
from mopd.importers.prompts import as_prompt
from mopd.importers.reading import first_record
from mopd.importers.values import as_ids, as_optional_text, as_reward, as_step, storable

__all__ = ["metadata_of", "parse_open_instruct"]

FINISHED = {"stop": True, "length": False}
SHARD = re.compile(r"(?P<run>.*)_rollouts_\d+\.jsonl\Z")


def metadata_of(context: FileContext) -> Mapping[str, Any]:
    """The record of the run's metadata file, or nothing."""
    match = SHARD.match(context.path.name)
    beside = context.path.with_name(f"{match['run']}_metadata.jsonl") if match else None
    return (first_record(beside, ImportOptions()) or {}) if beside and beside.is_file() else {}


def parse_open_instruct(record: Record, context: FileContext) -> Row:
    prompt_ids = as_ids(record.get("prompt_tokens"), "prompt_tokens")
    response_ids = as_ids(record.get("response_tokens"), "response_tokens")
    if prompt_ids is None:
        raise RowError("field 'prompt_tokens' is missing")
    prompt_text = decoded(prompt_ids, "prompt_tokens", context.options, special=True)
    prompt, notes = as_prompt(prompt_text, "prompt_tokens", context.options.prompt_as)
    reward, reward_notes = as_reward(record.get("reward"), "reward")
    reason, index, dataset = record.get("finish_reason"), record.get("prompt_idx"), record.get("dataset")
    return Row(
        prompt=prompt,
        response=decoded(response_ids or (), "response_tokens", context.options, special=False),
        reward=reward,
        response_ids=response_ids,
        finished=FINISHED.get(reason) if isinstance(reason, str) else None,
        policy=as_optional_text(context.side.get("model_name"), "model_name"),
        step=as_step(record.get("step"), context.step),
        task=as_optional_text(dataset[0] if isinstance(dataset, list) and dataset else dataset, "dataset"),
        group=None if index is None else f"{index}",
        notes=notes + reward_notes,
    )


def decoded(ids: tuple[int, ...], name: str, options: ImportOptions, *, special: bool) -> str:
    if options.decode is None:
        raise ImportFailure(
            "open-instruct files hold token ids and no text; pass decode=tokenizer.decode with the tokenizer "
            "of the model that sampled them (--tokenizer MODEL)"
        )
    try:
        text = options.decode(list(ids), skip_special_tokens=not special)
    except Exception as error:  # a tokenizer may raise anything for ids that are not its own
        raise RowError(f"field {name!r} cannot be decoded", f"{type(error).__name__}: {error}"[:120]) from None
    return storable(text, name)
