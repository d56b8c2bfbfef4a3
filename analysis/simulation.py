"""Studies simulated under nulls: who is compared with whom is planned as for a real one, only scores are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.published import published_protocol
from mopd.conditions import condition
from mopd.contrasts import PRIMARY
from mopd.metrics import METRICS, Units
from mopd.peers import PROTOCOLS
from mopd.planning import Planner
from mopd.rollouts import Group, Rollout
from mopd.tokens import ByteCodec

__all__ = [
    "CONDITIONS",
    "LEAD",
    "NULLS",
    "RIVALS",
    "ROLLOUTS",
    "Layout",
    "Pool",
    "Scores",
    "make_groups",
    "make_pool",
    "pair_moments",
    "pair_values",
    "split_values",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NULLS = ("noise", "context_shift", "shuffled_labels", "correlated")
LEAD, RIVALS = PRIMARY
CONDITIONS = (*RIVALS, LEAD)
ROLLOUTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Who is compared with whom under one condition of one protocol.

    Suffixes: ``R`` rows (distinct contexts x targets), ``T`` places of a target in a unit, ``P`` pairs.
    """

    target_R: Ints
    context_R: Ints
    row_T: Ints
    unit_T: Ints
    group_U: Ints
    success_P: Ints  # row of the success
    failure_P: Ints
    group_P: Ints  # ascending


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Planned groups that simulated studies are drawn from."""

    success_N: NDArray[np.bool_]  # of every rollout
    group_N: Ints
    pairs: dict[str, Layout]
    splits: dict[str, Layout]
    published: dict[str, Layout]
    supported: Ints  # groups that are compared

    @property
    def n_groups(self) -> int:
        """Planned groups, compared or not."""
        return len(self.success_N) // ROLLOUTS


def make_groups(n: int, rng: np.random.Generator) -> list[Group]:
    """Groups of eight rollouts, success rates from Beta(1, 1): many of one class only, as in practice."""
    groups = []
    for g in range(n):
        labels = rng.random(ROLLOUTS) < rng.beta(1.0, 1.0)
        rollouts = tuple(
            Rollout(rollout_id=f"{g}-{i}", group_id=str(g), response=f"{g} {i}", success=bool(label))
            for i, label in enumerate(labels)
        )
        groups.append(Group(group_id=str(g), task="simulated", prompt=f"prompt {g}", rollouts=rollouts))
    return groups


def make_pool(n: int, rng: np.random.Generator) -> Pool:
    """Plan ``n`` groups as a study would."""
    groups = make_groups(n, rng)
    recipes = [condition(name) for name in CONDITIONS]
    protocols = {name: PROTOCOLS[name] for name in ("leave_pair_out", "split")}
    planner = Planner(codec=ByteCodec(), conditions=recipes, protocols=protocols)
    plans = [planner.plan(group) for group in groups]
    number = {r.rollout_id: i for i, r in enumerate(r for group in groups for r in group.rollouts)}
    success_N = np.array([bool(r.success) for group in groups for r in group.rollouts])

    def layout(protocol: str, name: str) -> Layout:
        places = [
            (g, t.unit_id, number[t.rollout_id], t.context_id)
            for g, plan in enumerate(plans)
            for t in plan.targets
            if t.supported and t.protocol == protocol and t.condition == name
        ]
        return _layout(places, success_N)

    def published(name: str) -> Layout:
        cond = condition(name)
        places = [
            (g, "group", number[t], str(a.peers))
            for g, group in enumerate(groups)
            for a in published_protocol(group, cond, 0)
            for t in a.targets
            if len(a.peers or ()) == cond.slots
        ]
        return _layout(places, success_N)

    pairs = {name: layout("leave_pair_out", name) for name in CONDITIONS}
    return Pool(
        success_N=success_N,
        group_N=np.repeat(np.arange(n), ROLLOUTS),
        pairs=pairs,
        splits={name: layout("split", name) for name in ("question_only", LEAD)},
        published={name: published(name) for name in CONDITIONS if condition(name).of_family},
        supported=np.unique(pairs[LEAD].group_P),
    )


def _layout(places: Sequence[tuple[int, str, int, str | None]], success_N: NDArray[np.bool_]) -> Layout:
    """From (group, unit, target, context) of every place to indices."""
    rows: dict[tuple[str | None, int], int] = {}
    contexts: dict[tuple[int, str | None], int] = {}
    units: dict[tuple[int, str], int] = {}
    row_T, unit_T, context_R = [], [], []
    members: dict[int, tuple[list[int], list[int]]] = {}
    for group, name, target, context in places:
        unit = units.setdefault((group, name), len(units))
        row = rows.setdefault((context, target), len(rows))
        if row == len(context_R):
            context_R.append(contexts.setdefault((group, context), len(contexts)))
        row_T.append(row)
        unit_T.append(unit)
        members.setdefault(unit, ([], []))[0 if success_N[target] else 1].append(row)
    group_U = np.array([group for group, _ in units], dtype=np.int64)
    pairs = sorted((group_U[u], s, f) for u, (good, bad) in members.items() for s in good for f in bad)
    group_P, success_P, failure_P = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    return Layout(
        target_R=np.array([target for _, target in rows], dtype=np.int64),
        context_R=np.array(context_R, dtype=np.int64),
        row_T=np.array(row_T, dtype=np.int64),
        unit_T=np.array(unit_T, dtype=np.int64),
        group_U=group_U,
        success_P=success_P,
        failure_P=failure_P,
        group_P=group_P,
    )


class Scores:
    """Scores of one null, for many studies at once: ``S`` studies, ``N`` rollouts of the pool."""

    def __init__(self, null: str, pool: Pool, studies: int, rng: np.random.Generator) -> None:
        self.null, self.pool, self.studies, self.rng = null, pool, studies, rng
        n = len(pool.success_N)
        self.target_SN = rng.normal(size=(studies, n))
        if null == "shuffled_labels":
            order = np.argsort(rng.random((studies, n // ROLLOUTS, ROLLOUTS)), axis=2)
            labels = np.broadcast_to(pool.success_N.reshape(-1, ROLLOUTS), order.shape)
            self.target_SN = np.take_along_axis(labels, order, axis=2).reshape(studies, n).astype(np.float64)
        if null == "correlated":
            cluster_N = 4 * pool.group_N + 2 * pool.success_N + np.arange(n) % 2
            self.target_SN = rng.normal(size=(studies, cluster_N.max() + 1))[:, cluster_N]

    def of(self, layout: Layout) -> Floats:
        """Scores of the rows of a layout, shape (S, R)."""
        shape = (self.studies, len(layout.target_R))
        if self.null == "noise":
            return self.rng.normal(size=shape)
        shared = self.target_SN[:, layout.target_R]
        if self.null == "context_shift":
            shift = self.rng.normal(size=(self.studies, int(layout.context_R.max(initial=0)) + 1))
            return shared + shift[:, layout.context_R]
        if self.null == "correlated":
            return shared + 0.5 * self.rng.normal(size=shape)
        return shared


def pair_values(score_SR: Floats, layout: Layout, n_groups: int) -> tuple[Floats, Floats]:
    """AUC and margin of every group, shape (S, G) each; NaN for a group without a pair."""
    difference = score_SR[:, layout.success_P] - score_SR[:, layout.failure_P]
    starts = np.flatnonzero(np.r_[True, layout.group_P[1:] != layout.group_P[:-1]])
    size = np.diff(np.r_[starts, len(layout.group_P)])
    auc, margin = np.full((2, len(score_SR), n_groups), np.nan)
    groups = layout.group_P[starts]
    auc[:, groups] = np.add.reduceat((np.sign(difference) + 1) / 2, starts, axis=1) / size
    margin[:, groups] = np.add.reduceat(difference, starts, axis=1) / size
    return auc, margin


def split_values(score_SR: Floats, layout: Layout, pool: Pool) -> dict[str, Floats]:
    """Every metric of every group under ``split``, shape (S, G): the mean over its defined splits."""
    studies, n_units = len(score_SR), len(layout.group_U)
    score = score_SR[:, layout.row_T].ravel()
    success = np.tile(pool.success_N[layout.target_R[layout.row_T]], studies)
    unit = (layout.unit_T + n_units * np.arange(studies)[:, None]).ravel()
    units = Units.of(score, success, unit, n_units * studies)
    in_group = np.zeros((n_units, pool.n_groups))
    in_group[np.arange(n_units), layout.group_U] = 1.0
    found = {}
    for name, metric in METRICS.items():
        value_SU = metric.function(units).reshape(studies, n_units)
        defined = ~np.isnan(value_SU)
        with np.errstate(invalid="ignore"):
            found[name] = (np.where(defined, value_SU, 0.0) @ in_group) / (defined.astype(np.float64) @ in_group)
    return found


def pair_moments(score_SR: Floats, layout: Layout, n_groups: int, rng: np.random.Generator) -> Floats:
    """Second moments of score, label, length and similarity as ``mopd.partial`` takes them, shape (S, G, V, V).

    Length and similarity are drawn for each target, higher for successes and whatever the score: they go with the
    label as confounders do, and hold nothing of the score. NaN for a group without a pair.
    """
    targets = int(layout.target_R.max(initial=-1)) + 1
    success_P, failure_P = layout.target_R[layout.success_P], layout.target_R[layout.failure_P]
    covariates = [rng.normal(size=(len(score_SR), targets)) for _ in range(2)]
    differences = [score_SR[:, layout.success_P] - score_SR[:, layout.failure_P]]
    differences += [x[:, success_P] + 0.5 - x[:, failure_P] for x in covariates]
    score, length, similarity = (np.sign(d) / 4 for d in differences)  # the ranks of a pair are 1/4 and -1/4
    variables = [score, np.full_like(score, 0.25), length, similarity]
    starts = np.flatnonzero(np.r_[True, layout.group_P[1:] != layout.group_P[:-1]])
    size = np.diff(np.r_[starts, len(layout.group_P)])
    moments = np.full((len(score_SR), n_groups, 4, 4), np.nan)
    for a in range(4):
        for b in range(a, 4):
            mean = np.add.reduceat(variables[a] * variables[b], starts, axis=1) / size
            moments[:, layout.group_P[starts], a, b] = moments[:, layout.group_P[starts], b, a] = mean
    return moments
