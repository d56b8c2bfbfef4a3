"""TRL's ``completions/completions_{step}.parquet`` (GRPOTrainer and its relatives with ``log_completions``).

Columns: ``step`` (text in older releases), ``prompt`` and ``completion`` (messages where the data set is
conversational, else text), one column per reward function (NaN where it returned None),
whatever the user logged besides, and ``advantage``. Neither the weights of the reward functions nor the
border between rewards and other columns is recorded, so with several numeric columns between ``completion``
and ``advantage`` nobody can tell which is *the* reward: the import refuses and asks for ``reward_key``, a
column or a sum of columns (``"accuracy_reward"``, ``"accuracy_reward+format_reward"``). A row whose chosen
reward is null is unjudged.

Schema: ``GRPOTrainer.log`` of TRL 1.16, and a file that a run of it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from mopd.importers.base import FileContext, ImportFailure, Record, Row
from mopd.importers.prompts import as_prompt
from mopd.importers.values import as_messages, as_reward, as_step, as_text, has_messages

__all__ = ["columns_of", "parse_trl", "reward_columns"]

NOT_REWARDS = {"step", "prompt", "completion", "advantage", "mode", "images", "image"}


def columns_of(context: FileContext) -> Mapping[str, Any]:
    """The file's numeric columns: a single row does not tell, for a null in it may stand in a column of text."""
    try:
        with context.path.open("rb") as stream:
            schema = pl.read_parquet_schema(stream)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return {}  # reading the rows reports it
    return {"numeric": [n for n, t in schema.items() if t.is_integer() or t.is_float() or t == pl.Boolean]}


def reward_columns(record: Record, reward_key: str | None, numeric: Sequence[str]) -> Sequence[str]:
    """The columns whose sum is the reward; ``numeric`` are those of the whole file."""
    if reward_key is not None:
        names = [name.strip() for name in reward_key.split("+")]
        missing = [name for name in names if name not in record]
        if missing:
            raise ImportFailure(f"reward_key names no column {missing[0]!r}; the columns are {', '.join(record)}")
        return names
    numeric = [name for name in numeric if name not in NOT_REWARDS and name in record]
    if len(numeric) > 1:
        raise ImportFailure(
            f"there are several columns that may be the reward: {', '.join(numeric)}; say which with "
            f"reward_key={numeric[0]!r} (--reward-key {numeric[0]}), or a sum such as "
            f"reward_key={'+'.join(numeric[:2])!r}"
        )
    return numeric


def parse_trl(record: Record, context: FileContext) -> Row:
    prompt, notes = as_prompt(record.get("prompt"), "prompt", context.options.prompt_as)
    rewards: list[float | None] = []
    for name in reward_columns(record, context.options.reward_key, context.side.get("numeric", ())):
        reward, more = as_reward(record[name], name)
        rewards.append(reward)
        notes += more
    known = [r for r in rewards if r is not None]
    return Row(
        prompt=prompt,
        response=completion_text(record.get("completion")),
        reward=sum(known) if known and len(known) == len(rewards) else None,
        step=as_step(record.get("step"), context.step),
        notes=notes,
    )


def completion_text(value: object) -> str:
    """The completion: text, or the one message of a conversational completion."""
    if has_messages(value) and isinstance(value, list) and len(value) == 1:
        return as_messages(value, "completion")[0]["content"]
    return as_text(value, "completion")
