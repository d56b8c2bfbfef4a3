"""Planted errors: correct rollouts with one step altered, so that the label of every step is known exactly.

In a correct rollout of at least two equations, of which none is false, the result of one is changed into another
number; the seed decides which and into what. The altered copy is a failure that differs from a success in that alone.

Original and copy are scored as a pair under one context (``planted_protocol``), whose peers come from the group without
both and their near-duplicates, and never from planted rollouts. So the study of planted errors says two things: whether
the teacher prefers the original (its AUC), and whether Δ falls on the altered step (``mopd.localisation``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from mopd.conditions import Condition
from mopd.equations import Equation, equations_in
from mopd.localisation import STEPS
from mopd.peers import Assignment, Protocol, choose_peers, in_line, normalise
from mopd.rollouts import Group, Rollout, content_id

__all__ = ["Planted", "PlantedErrors", "plant", "plant_errors", "planted_protocol"]

SOURCE = "planted"
CHANGES = (1, -1, 2, -2, 10, -10, 3, -3)
"""What is added to a result, in units of its last place: slips, carries and a wrong ten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """A rollout with one step altered.

    Attributes:
        rollout_id: of the altered copy.
        of: the rollout that it was made of.
        response: what the copy says.
        steps: its equations, in order.
        wrong: which of them was altered.
    """

    rollout_id: str
    of: str
    response: str
    steps: tuple[Equation, ...]
    wrong: int


@dataclass(frozen=True, kw_only=True)
class PlantedErrors:
    """Rollouts of the groups with planted errors, the copies among them; the copies' steps; whose copies they are."""

    rollouts: pl.DataFrame
    steps: pl.DataFrame
    of: Mapping[str, str]


def plant(rollout: Rollout, seed: int = 0) -> Planted | None:
    """Alter one step of a rollout; None if it has fewer than two equations, a false one, or none that can be altered.

    The checker then finds exactly one false equation, which is the altered one.
    """
    equations = equations_in(rollout.response)
    if len(equations) < 2 or any(e.holds is False for e in equations):
        return None
    rng = random.Random(content_id("plant", seed, rollout.rollout_id))
    places = [i for i, e in enumerate(equations) if e.holds and e.value_start is not None]
    rng.shuffle(places)
    for place in places:
        for change in rng.sample(CHANGES, len(CHANGES)):
            response = _changed(rollout.response, equations[place], change)
            steps = equations_in(response) if response is not None else []
            if response is not None and _only_wrong(steps, equations, place):
                return Planted(
                    rollout_id=content_id("planted", rollout.rollout_id, response),
                    of=rollout.rollout_id,
                    response=response,
                    steps=tuple(steps),
                    wrong=place,
                )
    return None


def _changed(text: str, equation: Equation, change: int) -> str | None:
    """The text with another result of the equation; None if that would be below zero."""
    assert equation.value_start is not None  # the caller chose such an equation
    assert equation.value_end is not None
    shown = text[equation.value_start : equation.value_end]
    value = Decimal(shown.replace(",", ""))
    exponent = value.as_tuple().exponent
    altered = value + change * Decimal(1).scaleb(exponent if isinstance(exponent, int) else 0)
    if altered < 0:
        return None
    number = f"{altered:,f}" if "," in shown else f"{altered:f}"
    return text[: equation.value_start] + number + text[equation.value_end :]


def _only_wrong(steps: list[Equation], before: list[Equation], place: int) -> bool:
    return len(steps) == len(before) and all(
        e.holds is False if i == place else e.holds == old.holds
        for i, (e, old) in enumerate(zip(steps, before, strict=True))
    )


def plant_errors(rollouts: pl.DataFrame, *, per_group: int = 4, seed: int = 0) -> PlantedErrors:
    """Plant errors in the successes of every group.

    Args:
        rollouts: a checked table.
        per_group: most altered copies of a group, of different rollouts.
        seed: which rollouts, steps and numbers.

    Returns:
        The groups that got a copy, with their copies (``success`` false, ``source`` planted). An original is left
        without its exact ids, as its copy has none: a pair must not differ by who cut it into tokens.

    Raises:
        ValueError: no rollout has steps that can be altered.
    """
    copies: list[dict[str, object]] = []
    steps: list[tuple[object, ...]] = []
    of: dict[str, str] = {}
    for part in rollouts.partition_by("group_id", maintain_order=True):
        rows = sorted(
            part.filter(pl.col("success")).iter_rows(named=True),
            key=lambda row: content_id("order", seed, row["rollout_id"]),
        )
        made = 0
        for row in rows:
            rollout = Rollout(rollout_id=row["rollout_id"], group_id=row["group_id"], response=row["response"] or "")
            planted = plant(rollout, seed) if made < per_group else None
            if planted is None:
                continue
            made += 1
            of[planted.rollout_id] = planted.of
            copies.append(row | _copied_fields(planted))
            steps += [
                (planted.rollout_id, SOURCE, i, e.start, e.end, i == planted.wrong) for i, e in enumerate(planted.steps)
            ]
    if not copies:
        raise ValueError(
            "no correct rollout has two equations of which one could be altered; errors are planted in results of "
            "arithmetic (3 + 4 = 7), so bring rollouts that show their calculations"
        )
    table = pl.DataFrame(copies, schema=rollouts.schema, strict=False)
    groups = rollouts.filter(pl.col("group_id").is_in(table["group_id"].unique().to_list())).with_columns(
        pl.when(~pl.col("rollout_id").is_in(list(of.values()))).then("response_ids")
    )
    return PlantedErrors(
        rollouts=pl.concat([groups, table]), steps=pl.DataFrame(steps, schema=STEPS, orient="row"), of=of
    )


def _copied_fields(planted: Planted) -> dict[str, object]:
    """What differs between a row and its altered copy."""
    return {
        "rollout_id": planted.rollout_id,
        "response": planted.response,
        "response_ids": None,
        "reward": 0.0,
        "success": False,
        "answer": None,
        "feedback": None,
        "source": SOURCE,
    }


def planted_protocol(of: Mapping[str, str]) -> Protocol:
    """Pairs of an original and its altered copy, scored under one context that shows neither, and no copy at all.

    Args:
        of: by id of a copy, the id of its original.
    """

    def protocol(group: Group, condition: Condition, seed: int) -> Iterator[Assignment]:
        line = [(rollout, text) for rollout, text in in_line(group, seed) if rollout.rollout_id not in of]
        for copy in (r for r in group.rollouts if r.rollout_id in of):
            original = group.by_id[of[copy.rollout_id]]
            banned = {normalise(original.response), normalise(copy.response)}
            yield Assignment(
                unit_id=f"{original.rollout_id}~{copy.rollout_id}",
                targets=(original.rollout_id, copy.rollout_id),
                peers=choose_peers(condition, line, banned),
            )

    return protocol
