"""Is it the label that the score follows, or something that goes with it? The rows of ``confounds.parquet``.

* ``near_duplicate_rate``: share of a group's rollouts whose normalised text another of the group has.
* ``edit_similarity``, ``ngram_overlap``: of targets to the closest peer that they were read under
  (``mopd.similarity``), for successes, for failures, and their difference within groups. If successes are closer to
  what is shown, copying
  alone ranks them higher.
* ``auc`` within strata of the (success, failure) pairs of ``leave_pair_out``:

  - ``all``;
  - ``length matched``: caliper matching on length, which keeps every pair whose longer response has at most
    ``CALIPER_LENGTH`` times the tokens of the shorter one. Pairs, not partners, are chosen: a target may be in
    several of them;
  - ``edit matched``, ``n-gram matched``: likewise, similarities to the closest peer at most ``CALIPER_SIMILARITY``
    apart under *every* condition that shows peers; ``length and similarity matched``: all three;
  - ``same wrong answer``, ``other wrong answer``: the pair's failure gave the answer of a failure that its context
    shows, or none of them, by normalised answers and in all contexts of the pair that show a failure of the group;
  - ``majority right``, ``majority wrong``: the answer that most of the group's judged rollouts gave; a tie between a
    right and a wrong one is neither;
  - ``hard``, ``medium``, ``easy``: a share of successes up to 1/3, up to 2/3, and above, among the group's judged
    rollouts.

* ``partial_spearman``: rank correlation of score and label given length and similarity (``mopd.partial``).

A stratum holds the same pairs under every condition and every score that is there, so its rows can be compared:
``difference`` is the paired one to the reference condition. Whether a pair is in it is decided without any score.
Where that cannot be told (an answer is not known, no condition shows a peer) the pair is in neither stratum of its
kind and counts as ``n_unknown``. A stratum without pairs has null values. Groups weigh alike, as everywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mopd.inference import DRAWS, bootstrap_intervals
from mopd.metrics import ALL_TASKS, PAIRWISE_PROTOCOL
from mopd.partial import partial_rows
from mopd.peers import normalise
from mopd.similarity import near_duplicate_rates, shown_peers, similarity_table

__all__ = [
    "CALIPER_LENGTH",
    "CALIPER_SIMILARITY",
    "CONFOUND_TABLE",
    "STRATA",
    "confound_tables",
    "pair_strata",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CALIPER_LENGTH = 1.25
"""Most that the longer response of a length-matched pair is, in multiples of the shorter."""
CALIPER_SIMILARITY = 0.1
"""Most that two targets' similarities to their closest peer differ in a similarity-matched pair."""
STRATA = (
    "all",
    "length matched",
    "edit matched",
    "n-gram matched",
    "length and similarity matched",
    "same wrong answer",
    "other wrong answer",
    "majority right",
    "majority wrong",
    "hard",
    "medium",
    "easy",
)
CLASSES = ("success", "failure", "success - failure")

CONFOUND_TABLE = {
    **dict.fromkeys(("task", "protocol", "condition", "score", "measure", "stratum"), pl.String()),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64()),  # to the reference
    **dict.fromkeys(("n_groups", "n_pairs", "n_unknown"), pl.Int64()),
}
"""Columns and types of ``confounds.parquet``. Protocol, condition and score are null where a measure has none."""
_ORDER = ("task", "protocol", "measure", "stratum", "score", "condition")
SIMILARITIES = ("edit_similarity", "ngram_overlap")


def confound_tables(
    rollouts: pl.DataFrame,
    assignments: pl.DataFrame,
    contexts: pl.DataFrame,
    scores: pl.DataFrame,
    score_names: Sequence[str],
    reference: str = "question_only",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, pl.DataFrame]:
    """``similarity`` and ``confounds`` of a study, from its tables (design section 3).

    Args:
        rollouts: all that are targets or shown.
        assignments: as ``mopd.planning.assignment_frame`` makes it.
        contexts: of the supported targets.
        scores: a row per (context, target), with ``n_tokens`` and the score columns.
        score_names: score columns.
        reference: condition that ``difference`` is taken to; it need not have been run.
    """
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "confidence": confidence}
    similarity = similarity_table(rollouts, contexts, scores)
    rows = (
        assignments.filter("supported")
        .select("task", "protocol", "condition", "group_id", "unit_id", "rollout_id", "success", "context_id")
        .join(
            scores.select("context_id", "rollout_id", "n_tokens", *score_names),
            on=["context_id", "rollout_id"],
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .join(similarity, on=["context_id", "rollout_id"], how="left", validate="m:1", maintain_order="left")
    )
    found: list[dict[str, Any]] = []
    found += _duplicate_rows(rollouts, rows, settings)
    for (protocol,), part in sorted(rows.partition_by("protocol", as_dict=True).items()):
        for task, chosen in _by_task(part):
            place = {"task": task, "protocol": protocol}
            found += [place | row for row in _similarity_rows(chosen, settings)]
            found += [place | row for row in partial_rows(chosen, score_names, **settings)]
        if protocol == PAIRWISE_PROTOCOL and part.height:
            pairs = Pairs.of(part, score_names)
            strata = pair_strata(pairs, rollouts, contexts)
            found += _stratum_rows(pairs, strata, reference, settings)
    table = pl.DataFrame(found, schema=CONFOUND_TABLE, orient="row")
    table = table.with_columns(pl.selectors.float().fill_nan(None)).sort(_ORDER)
    return {"similarity": similarity, "confounds": table}


def _by_task(rows: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The rows of each task, and of all if there are several."""
    parts = [(str(task), part) for (task,), part in sorted(rows.partition_by("task", as_dict=True).items())]
    return [*parts, (ALL_TASKS, rows)] if len(parts) > 1 and ALL_TASKS not in dict(parts) else parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pairs of ``leave_pair_out``, which are the same under every condition.

    Suffixes: ``U`` pairs, ``C`` conditions, ``S`` scores, ``2`` the success and the failure.
    """

    keys: pl.DataFrame  # task, group_id, success_id, failure_id, a row per pair, sorted by task and group
    conditions: list[str]
    scores: tuple[str, ...]
    context_UC: NDArray[np.object_]
    tokens_U2: Floats
    similarity: dict[str, Floats]  # shape (U, C, 2) each; NaN where it is not defined
    won_UCS: Floats  # 1, ½ or 0; NaN under all conditions where a score of the pair is missing under one

    @classmethod
    def of(cls, rows: pl.DataFrame, scores: Sequence[str]) -> Pairs:
        """From the rows of ``leave_pair_out``, on common support.

        Raises:
            ValueError: a pair lacks its success or failure under a condition.
        """
        keys = ("task", "group_id", "unit_id", "condition")
        sides = [rows.filter(pl.col("success") == label).sort(keys) for label in (True, False)]
        conditions = sorted(rows["condition"].unique())
        shape = (-1, len(conditions))
        if not sides[0].select(keys).equals(sides[1].select(keys)) or (
            sides[0]["condition"].to_list() != conditions * (sides[0].height // len(conditions))
        ):
            raise ValueError(
                "the pairs are not on common support: each must have its success and its failure under every condition"
            )

        def both(name: str) -> Floats:
            columns = [side[name].cast(pl.Float64).fill_null(float("nan")).to_numpy().reshape(shape) for side in sides]
            return np.stack(columns, axis=-1)

        won = np.stack([_won(both(name)) for name in scores], axis=-1)
        first = [side.gather_every(len(conditions)) for side in sides]
        return cls(
            keys=first[0].select("task", "group_id", success_id="rollout_id", failure_id=first[1]["rollout_id"]),
            conditions=conditions,
            scores=tuple(scores),
            context_UC=sides[0]["context_id"].to_numpy().reshape(shape),
            tokens_U2=both("n_tokens")[:, 0],
            similarity={name: both(name) for name in SIMILARITIES},
            won_UCS=won,
        )


def _won(score_UC2: Floats) -> Floats:
    """Shape (U, C): 1 where the success has the higher score, ½ for a tie; NaN all along where one is missing."""
    good, bad = score_UC2[..., 0], score_UC2[..., 1]
    won = (good > bad) + 0.5 * (good == bad)
    won[np.isnan(score_UC2).any(axis=(1, 2))] = np.nan
    return won


def pair_strata(pairs: Pairs, rollouts: pl.DataFrame, contexts: pl.DataFrame) -> dict[str, tuple[Bools, Bools]]:
    """For each of ``STRATA``: which pairs are in it, and of which pairs that is known; bool, shape (U,) each."""
    n = pairs.keys.height
    known = np.ones(n, dtype=np.bool_)
    found = {"all": (known, known), "length matched": (_length_matched(pairs), known)}
    found["edit matched"] = _similarity_matched(pairs.similarity["edit_similarity"])
    found["n-gram matched"] = _similarity_matched(pairs.similarity["ngram_overlap"])
    three = [found[name] for name in ("length matched", "edit matched", "n-gram matched")]
    found["length and similarity matched"] = (
        np.logical_and.reduce([member for member, _ in three]),
        np.logical_and.reduce([known for _, known in three]),
    )
    found |= _by_answer(pairs, rollouts, contexts)
    found |= _by_group(pairs, rollouts)
    return {name: found[name] for name in STRATA}


def _length_matched(pairs: Pairs) -> Bools:
    return pairs.tokens_U2.max(axis=1) <= CALIPER_LENGTH * pairs.tokens_U2.min(axis=1)


def _similarity_matched(similarity_UC2: Floats) -> tuple[Bools, Bools]:
    """Within the caliper under every condition that shows peers; not known if none does, or a similarity is not."""
    shows_C = ~np.isnan(similarity_UC2).all(axis=(0, 2))
    apart_UC = np.abs(similarity_UC2[:, shows_C, 0] - similarity_UC2[:, shows_C, 1])
    known = ~np.isnan(apart_UC).any(axis=1) & shows_C.any()
    # a little slack, so that a difference of exactly the caliper is not lost to rounding
    within = (apart_UC <= CALIPER_SIMILARITY + 1e-12).all(axis=1)
    return np.asarray(within & known), np.asarray(known)


def _by_answer(pairs: Pairs, rollouts: pl.DataFrame, contexts: pl.DataFrame) -> dict[str, tuple[Bools, Bools]]:
    """Same or other wrong answer as the shown failures (module docstring)."""
    judged = {
        rollout_id: (group_id, success, None if answer is None else normalise(answer) or None)
        for rollout_id, group_id, success, answer in rollouts.select(
            "rollout_id", "group_id", "success", "answer"
        ).iter_rows()
    }
    shown: defaultdict[tuple[str, str], set[str | None]] = defaultdict(set)  # wrong answers by context and group
    for context_id, peer_id in shown_peers(contexts).iter_rows():
        group_id, success, answer = judged[peer_id]
        if success is False:
            shown[context_id, group_id].add(answer)
    same, other = np.zeros((2, pairs.keys.height), dtype=np.bool_)
    for u, (_, group_id, _, failure_id) in enumerate(pairs.keys.iter_rows()):
        answer = judged[failure_id][2]
        if answer is None:
            continue
        seen = [shown[c, group_id] for c in set(pairs.context_UC[u]) if (c, group_id) in shown]
        same[u] = bool(seen) and all(answer in answers for answers in seen)
        other[u] = bool(seen) and all(answer not in answers and None not in answers for answers in seen)
    known = same | other
    return {"same wrong answer": (same, known), "other wrong answer": (other, known)}


def _by_group(pairs: Pairs, rollouts: pl.DataFrame) -> dict[str, tuple[Bools, Bools]]:
    """Strata of whole groups: difficulty, and whether the majority is right."""
    groups = (
        rollouts.filter(pl.col("success").is_not_null())
        .group_by("group_id", maintain_order=True)
        .agg("success", "answer")
    )
    rate, right = {}, {}
    for group_id, successes, answers in groups.iter_rows():
        rate[group_id] = sum(successes) / len(successes)
        right[group_id] = _majority_is_right(successes, answers)
    ids = pairs.keys["group_id"]
    rate_U = np.array([rate[group_id] for group_id in ids], dtype=np.float64)
    majority = [right[group_id] for group_id in ids]
    told = np.array([m is not None for m in majority], dtype=np.bool_)
    known = np.ones(len(ids), dtype=np.bool_)
    return {
        "majority right": (np.array([m is True for m in majority], dtype=np.bool_), told),
        "majority wrong": (np.array([m is False for m in majority], dtype=np.bool_), told),
        "hard": (rate_U <= 1 / 3, known),
        "medium": ((rate_U > 1 / 3) & (rate_U <= 2 / 3), known),
        "easy": (rate_U > 2 / 3, known),
    }


def _majority_is_right(successes: Sequence[bool], answers: Sequence[str | None]) -> bool | None:
    """Whether the commonest answer is that of successes; None without answers, or if right and wrong ones tie."""
    given = [(normalise(answer or ""), success) for answer, success in zip(answers, successes, strict=True)]
    votes = Counter(vote for vote in given if vote[0])
    top = {success for (_, success), n in votes.items() if n == max(votes.values())}
    return top.pop() if len(top) == 1 else None


def _stratum_rows(
    pairs: Pairs, strata: dict[str, tuple[Bools, Bools]], reference: str, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the measure ``auc``: every stratum, condition and score, by task."""
    found: list[dict[str, Any]] = []
    tasks = pairs.keys["task"].to_numpy()
    names = sorted(set(tasks))
    pooled = [ALL_TASKS] if len(names) > 1 and ALL_TASKS not in names else []
    group_U = pairs.keys.select(pl.struct("task", "group_id").rank("dense").cast(pl.Int64)).to_series().to_numpy()
    for task in [*names, *pooled]:
        here = np.ones(len(tasks), dtype=np.bool_) if task in pooled else tasks == task
        for stratum, (member, known) in strata.items():
            chosen = here & member
            unknown = int((here & ~known).sum())
            value_GCS, pairs_GS = _group_means(pairs.won_UCS[chosen], group_U[chosen])
            place = {
                "task": task,
                "protocol": PAIRWISE_PROTOCOL,
                "measure": "auc",
                "stratum": stratum,
                "n_unknown": unknown,
            }
            numbers = _against_reference(value_GCS, pairs.conditions, reference, settings)
            found += [
                place
                | row
                | {
                    "condition": pairs.conditions[c],
                    "score": pairs.scores[s],
                    "n_pairs": int(pairs_GS[:, s].sum()),
                }
                for (c, s), row in numbers.items()
            ]
    return found


def _group_means(won_UCS: Floats, group_U: Ints) -> tuple[Floats, Floats]:
    """Mean over the defined pairs of each group that has any, shape (G, C, S), and their number, shape (G, S)."""
    if not len(group_U):
        return np.zeros((0, *won_UCS.shape[1:])), np.zeros((0, won_UCS.shape[2]))
    order = np.argsort(group_U, kind="stable")
    won, group = won_UCS[order], group_U[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    defined = ~np.isnan(won)
    n_GCS = np.add.reduceat(defined.astype(np.float64), starts, axis=0)
    total = np.add.reduceat(np.where(defined, won, 0.0), starts, axis=0)
    return np.divide(total, n_GCS, out=np.full(total.shape, np.nan), where=n_GCS > 0), n_GCS[:, 0]


def _against_reference(
    value_GCS: Floats, conditions: Sequence[str], reference: str, settings: dict[str, Any]
) -> dict[tuple[int, int], dict[str, Any]]:
    """For each (condition, score) the mean over groups and the paired difference to the reference, with intervals."""
    shape = value_GCS.shape[1:]
    base = np.full((len(value_GCS), 1, shape[1]), np.nan)
    if reference in conditions:
        base = value_GCS[:, [conditions.index(reference)]]
    both = np.concatenate([value_GCS, value_GCS - base], axis=1).reshape(len(value_GCS), 2 * shape[0] * shape[1])
    numbers = bootstrap_intervals(both, **settings)
    value, low, high, n_groups = (column.reshape(2, *shape) for column in numbers)
    found = {}
    for c, name in enumerate(conditions):
        for s in range(shape[1]):
            row = dict(zip(("value", "ci_low", "ci_high"), (value[0, c, s], low[0, c, s], high[0, c, s]), strict=True))
            if name != reference:
                row |= dict(zip(_DIFFERENCE, (value[1, c, s], low[1, c, s], high[1, c, s]), strict=True))
            found[c, s] = {key: float(number) for key, number in row.items()} | {"n_groups": int(n_groups[0, c, s])}
    return found


_DIFFERENCE = ("difference", "difference_low", "difference_high")


def _similarity_rows(rows: pl.DataFrame, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Similarity to the closest peer, by condition and class: the mean over a target's units, its group, all groups."""
    targets = rows.group_by("condition", "group_id", "rollout_id", maintain_order=True).agg(
        pl.col("success").first(), pl.col(*SIMILARITIES).mean()
    )
    found = []
    for measure in SIMILARITIES:
        own = pl.col(measure)
        means = (
            targets.group_by("condition", "group_id", maintain_order=True)
            .agg(success=own.filter("success").mean(), failure=own.filter(~pl.col("success")).mean())
            .with_columns((pl.col("success") - pl.col("failure")).alias("success - failure"))
            .sort("group_id", "condition")
        )
        names = means["condition"].unique().sort().to_list()  # the same for every group: support is common
        values_GK = means.select(CLASSES).fill_null(float("nan")).to_numpy().astype(np.float64)
        value, low, high, n = bootstrap_intervals(values_GK.reshape(-1, len(names) * len(CLASSES)), **settings)
        found += [
            {
                "condition": name,
                "measure": measure,
                "stratum": stratum,
                "value": float(value[k]),
                "ci_low": float(low[k]),
                "ci_high": float(high[k]),
                "n_groups": int(n[k]),
            }
            for k, (name, stratum) in enumerate((name, stratum) for name in names for stratum in CLASSES)
        ]
    return found


def _duplicate_rows(rollouts: pl.DataFrame, rows: pl.DataFrame, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """How many near-duplicates the groups that are compared have."""
    compared = rollouts.filter(pl.col("group_id").is_in(rows["group_id"].unique().to_list()))
    found = []
    for task, part in _by_task(near_duplicate_rates(compared)):
        values = part["value"].fill_null(float("nan")).to_numpy()[:, None]
        value, low, high, n = bootstrap_intervals(values, **settings)
        found.append(
            {
                "task": task,
                "measure": "near_duplicate_rate",
                "stratum": "all",
                "value": float(value[0]),
                "ci_low": float(low[0]),
                "ci_high": float(high[0]),
                "n_groups": int(n[0]),
            }
        )
    return found
