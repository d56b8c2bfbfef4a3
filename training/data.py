"""Prompts to train on, prompts to evaluate on, and the order in which a run takes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mopd import tasks
from mopd.rollouts import content_id, prompt_key
from mopd.tasks import TaskItem
from mopd.tokens import Codec
from training.config import DataConfig

__all__ = ["DataError", "Prompts", "keep_short", "load_prompts", "training_order"]


class DataError(ValueError):
    """The prompts cannot be trained on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Items to train on and items to evaluate on, and how many were left out for their length."""

    train: tuple[TaskItem, ...]
    held_out: tuple[TaskItem, ...]
    dropped: int = 0


def load_prompts(data: DataConfig) -> Prompts:
    """The items that a configuration asks for.

    The held-out items are the first that the task gives, so that they stay the same when more are trained on. A
    prompt that is held out is never trained on, under whatever id.

    Raises:
        DataError: the task has too few, or mixes messages with plain text.
        ValueError: the task is unknown or cannot be read.
    """
    items = _items(data)
    held_out = items[: data.held_out]
    unseen = {prompt_key(item.prompt) for item in held_out}
    train = [item for item in items[data.held_out :] if prompt_key(item.prompt) not in unseen][: data.prompts]
    if len(held_out) < data.held_out or not train or len(train) < (data.prompts or 1):
        raise DataError(
            f"task {data.task!r} gives {len(items)} prompts{_of(data)}, fewer than {data.held_out} held out and "
            f"{data.prompts or 1} to train on: ask for fewer (prompts, held_out)"
        )
    if len({isinstance(item.prompt, str) for item in items}) > 1:
        raise DataError(f"task {data.task!r} mixes chat messages with plain text: train on one kind at a time")
    return Prompts(train=tuple(train), held_out=tuple(held_out))


def _of(data: DataConfig) -> str:
    return f" of the topics {', '.join(data.topics)}" if data.topics else ""


def _items(data: DataConfig) -> list[TaskItem]:
    """At least as many items as are needed, if the task has them: a generated suite makes what it is asked for."""
    need = None if data.prompts is None else data.prompts + data.held_out
    limit = need
    while True:
        try:
            items = tasks.load(data.task, limit=limit, seed=data.data_seed, source=data.source)
        except ValueError as error:
            if limit == need:
                raise
            raise DataError(f"{error}; the topics {', '.join(data.topics)} have too few") from error
        kept = [item for item in items if not data.topics or item.metadata.get("topic") in data.topics]
        if data.topics and not kept:
            known = sorted({str(item.metadata.get("topic")) for item in items})
            raise DataError(f"task {data.task!r} has no item of the topics {', '.join(data.topics)}: it has {known}")
        if limit is None or need is None or len(kept) >= need or len(items) < limit:
            return kept
        limit *= 2


def keep_short(prompts: Prompts, codec: Codec, limit: int, *, drop: bool) -> Prompts:
    """The prompts of at most ``limit`` tokens. TRL would cut the beginning of a longer one off, where the question is.

    Raises:
        DataError: one is longer and ``drop`` is false, or all are.
    """

    def short(items: Sequence[TaskItem]) -> tuple[TaskItem, ...]:
        return tuple(item for item in items if len(codec.encode_prompt(item.prompt)) <= limit)

    train, held_out = short(prompts.train), short(prompts.held_out)
    dropped = len(prompts.train) + len(prompts.held_out) - len(train) - len(held_out)
    if dropped and not drop:
        long = next(i for i in (*prompts.train, *prompts.held_out) if i not in train and i not in held_out)
        raise DataError(
            f"{dropped} prompts are longer than max_prompt_tokens = {limit}, the first being {long.item_id} with "
            f"{len(codec.encode_prompt(long.prompt))} tokens: raise the limit, or leave them out with "
            "long_prompts = 'drop'"
        )
    if not train or not held_out:
        raise DataError(f"no prompt has at most max_prompt_tokens = {limit} tokens: raise the limit")
    return Prompts(train=train, held_out=held_out, dropped=dropped)


def training_order(items: int, count: int, seed: int) -> list[int]:
    """Places of the items in the order of training: every item once, then every item once more in another order.

    The order is written out before the first step, so that a resumed run, a longer run, and a run on another number
    of processes take the same prompts.

    Args:
        items: how many there are.
        count: how many are taken in all.
        seed: of the order.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        places = list(range(items))
        random.Random(content_id("order", seed, epoch)).shuffle(places)
        order += places
        epoch += 1
    return order[:count]
