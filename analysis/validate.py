"""Do the tests and intervals keep their promises where nothing is to be found?

Simulates studies under nulls, in which no condition helps, and counts how often each test claims a difference and each
interval misses the truth. Units, contexts and common support are planned by the same code as a real study's; only the
teacher's scores are drawn.

nulls:
  noise            a fresh normal draw for each (context, target)
  context_shift    one draw a target, and a constant for each context
  shuffled_labels  the scores of a perfect teacher whose labels were permuted within the group
  correlated       rollouts come in clusters (two of successes, two of failures) that share most of their score, so that
                   the pairs of a group say nearly the same thing

The published procedure (undefined prompts as 0.0, each condition on its own prompts) is run on the same nulls, with the
intervals and tests that its bars invite. A planted effect shows the power, beside what `mopd.power` foretells.

examples:
  python -m analysis.validate                          2,000 studies of 12 and of 30 groups under each null
  python -m analysis.validate --studies 4000 --groups 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from analysis.cli import Help, add_config, parse
from analysis.published import published_protocol
from analysis.tables import text_table
from mopd.conditions import condition
from mopd.contrasts import EQUIVALENCE_MARGIN, PRIMARY, equivalence_p_values
from mopd.inference import DRAWS, benjamini_hochberg, bootstrap_intervals, holm, sign_flip_p_values
from mopd.metrics import METRICS, Units
from mopd.peers import PROTOCOLS
from mopd.planning import Planner
from mopd.power import power_of
from mopd.rollouts import Group, Rollout
from mopd.store import write_parquet
from mopd.tokens import ByteCodec

__all__ = ["NULLS", "main", "validate"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NULLS = ("noise", "context_shift", "shuffled_labels", "correlated")
LEAD, RIVALS = PRIMARY
CONDITIONS = (*RIVALS, LEAD)
ROLLOUTS = 8
ALPHA = 0.05
STUDIES_A_SEED = 25
WIDE_MARGIN = 6
MOST_ERRORS = 3
EFFECTS = (0.3, 0.6, 1.0)
"""Planted shifts of the successes under the leading condition, in standard deviations of the noise."""

RESULTS = {
    "groups": pl.Int64(),
    "null": pl.String(),
    "statistic": pl.String(),
    "kind": pl.String(),  # false positives, coverage, power, or published
    "rate": pl.Float64(),
    "nominal": pl.Float64(),  # the promise; for power, the forecast
    "error": pl.Float64(),  # of the rate: its Monte-Carlo standard error at the nominal rate
    "verdict": pl.String(),
}


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
    n_groups = len(pool.success_N) // ROLLOUTS
    in_group = np.zeros((n_units, n_groups))
    in_group[np.arange(n_units), layout.group_U] = 1.0
    found = {}
    for name, metric in METRICS.items():
        value_SU = metric.function(units).reshape(studies, n_units)
        defined = ~np.isnan(value_SU)
        with np.errstate(invalid="ignore"):
            found[name] = (np.where(defined, value_SU, 0.0) @ in_group) / (defined.astype(np.float64) @ in_group)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a block of simulated studies has in common."""

    pool: Pool
    studies: int
    groups: int
    draws: int
    flips: int
    seed: int
    chosen_GS: Ints  # which groups of the pool each study has

    def studied(self, value_SG: Floats) -> Floats:
        """The values of each study's own groups, shape (G, S)."""
        return np.take_along_axis(value_SG.T, self.chosen_GS, axis=0)

    def row(self, null: str, statistic: str, kind: str, rate: float, nominal: float) -> tuple:
        error = float(np.sqrt(nominal * (1 - nominal) / self.studies))
        return (self.groups, null, statistic, kind, rate, nominal, error, "")


def judge(table: pl.DataFrame) -> pl.DataFrame:
    """The table with its verdicts: is each rate within ``MOST_ERRORS`` Monte-Carlo errors of its promise, or better?

    Of nothing but nominal rates one in 740 lies farther on the wrong side by chance: a run of two hundred finds a
    broken promise in about a quarter of all seeds, and another seed tells chance from a broken promise.
    """
    judged = ~table["kind"].is_in(["published", "power"])
    of_test = pl.col("kind") == "false positives"
    off = pl.when(of_test).then(pl.col("rate") - pl.col("nominal")).otherwise(pl.col("nominal") - pl.col("rate"))
    worse, better = off > MOST_ERRORS * pl.col("error"), off < -MOST_ERRORS * pl.col("error")
    return table.with_columns(
        verdict=pl.when(~judged)
        .then(pl.lit(""))
        .when(worse)
        .then(pl.when(of_test).then(pl.lit("too often")).otherwise(pl.lit("too narrow")))
        .when(better)
        .then(pl.lit("cautious"))
        .otherwise(pl.lit("nominal"))
    )


def check_null(null: str, setting: Setting, rng: np.random.Generator) -> Iterator[tuple]:
    """Rows of ``RESULTS`` for one null."""
    pool, n_groups = setting.pool, len(setting.pool.success_N) // ROLLOUTS
    scores = Scores(null, pool, setting.studies, rng)
    values = {name: pair_values(scores.of(layout), layout, n_groups) for name, layout in pool.pairs.items()}
    auc = {name: setting.studied(value[0]) for name, value in values.items()}
    for name in ("question_only", LEAD):
        yield _coverage(null, f"auc of {name}", auc[name], 0.5, setting)
    yield _coverage(null, f"margin of {LEAD}", setting.studied(values[LEAD][1]), 0.0, setting)
    difference = np.stack([auc[LEAD] - auc[rival] for rival in RIVALS])
    yield _coverage(null, f"auc of {LEAD} - question_only", difference[0], 0.0, setting)
    yield from _tests(null, difference, setting)
    splits = {name: split_values(scores.of(layout), layout, pool) for name, layout in pool.splits.items()}
    for name, value_SG in splits[LEAD].items():
        # conditional on these labels a metric has no chance value of its own: the truth is the mean over all studies
        defined = ~np.isnan(value_SG)
        times_G = defined.sum(axis=0)
        truth_G = np.divide(
            np.where(defined, value_SG, 0.0).sum(axis=0), times_G, where=times_G > 0, out=np.full(n_groups, np.nan)
        )
        truth = float(np.nanmean(truth_G[setting.chosen_GS]))
        yield _coverage(null, f"{name} of {LEAD}, split", setting.studied(value_SG), truth, setting)
        against = setting.studied(value_SG - splits["question_only"][name])
        if np.nanmax(np.abs(against)) > 0:
            title = f"{name} of {LEAD} - question_only, split"
            yield _coverage(null, title, against, 0.0, setting)
    yield from _published(null, scores, setting)


def _coverage(null: str, statistic: str, value_GS: Floats, truth: float, setting: Setting) -> tuple:
    held, kept = 0, 0
    # Columns share their resamples, and one set of them may be a little wide or narrow: a set for every few studies.
    for block, start in enumerate(range(0, setting.studies, STUDIES_A_SEED)):
        values = value_GS[:, start : start + STUDIES_A_SEED]
        _, low, high, n = bootstrap_intervals(values, draws=setting.draws, seed=setting.seed + block)
        defined = n > 1
        held += int(((low <= truth + 1e-12) & (high >= truth - 1e-12))[defined].sum())
        kept += int(defined.sum())
    return setting.row(null, statistic, "coverage", held / kept if kept else float("nan"), 0.95)


def _tests(null: str, difference_KGS: Floats, setting: Setting) -> Iterator[tuple]:
    """Every test on the primary differences, shape (K, G, S), which are 0 in truth."""
    p_KS = np.stack([sign_flip_p_values(d, flips=setting.flips, seed=setting.seed) for d in difference_KGS])

    def any_below(p: Floats) -> float:
        return float((np.nanmin(p, axis=0) <= ALPHA).mean())

    adjusted = {
        name: np.stack([f(p) for p in p_KS.T], axis=1) for name, f in (("Holm", holm), ("BH", benjamini_hochberg))
    }
    yield setting.row(null, "sign flips", "false positives", float((p_KS[0] <= ALPHA).mean()), ALPHA)
    yield setting.row(null, "any of the primary family, Holm", "false positives", any_below(adjusted["Holm"]), ALPHA)
    yield setting.row(
        null, "any of the family, Benjamini-Hochberg", "false positives", any_below(adjusted["BH"]), ALPHA
    )
    if np.ptp(difference_KGS[0]) > 0:
        # With few groups the declared margin is smaller than the error of a difference, and the test never speaks; at
        # a margin of many errors only one of its two sides can fail, and it must fail at the nominal rate.
        wide = WIDE_MARGIN * float(difference_KGS[0].std()) / np.sqrt(setting.groups)
        for name, margin in (("the margin", EQUIVALENCE_MARGIN), (f"{WIDE_MARGIN} standard errors", wide)):
            at_margin = difference_KGS[0] + margin
            p = equivalence_p_values(at_margin, np.full(at_margin.shape[1], margin))
            rate = float((p <= ALPHA).mean())
            yield setting.row(null, f"equivalence, truth at {name}", "false positives", rate, ALPHA)


def _published(null: str, scores: Scores, setting: Setting) -> Iterator[tuple]:
    """The bars that the released scripts draw ("effective" rows, undefined prompts as 0.0), read as bars are read.

    How often the t-interval of a bar holds the true 0.5, and how often some bar differs from that of question_only by
    Welch's test, each bar over its own prompts.
    """
    pool, n_groups = setting.pool, len(setting.pool.success_N) // ROLLOUTS
    rng = np.random.default_rng([setting.seed, 1])
    drawn_SG = np.argsort(rng.random((setting.studies, n_groups)), axis=1)[:, : setting.groups]
    bars: dict[str, Floats] = {}
    for name, layout in pool.published.items():
        value = np.nan_to_num(pair_values(scores.of(layout), layout, n_groups)[0], nan=0.0)
        value[:, np.setdiff1d(np.arange(n_groups), layout.group_U)] = np.nan  # no row, so no prompt
        bars[name] = np.take_along_axis(value, drawn_SG, axis=1)
    for name in ("question_only", LEAD):
        n = (~np.isnan(bars[name])).sum(axis=1)
        reach = stats.t.ppf(0.975, n - 1) * np.nanstd(bars[name], axis=1, ddof=1) / np.sqrt(n)
        holds = np.abs(np.nanmean(bars[name], axis=1) - 0.5) <= reach
        yield setting.row(null, f"published: interval of {name}", "published", float(holds.mean()), 0.95)
    plain = bars["question_only"]
    p_KS = [_welch(bar, plain) for name, bar in bars.items() if name != "question_only"]
    yield setting.row(
        null, "published: some bar is not question_only's", "published", float((np.min(p_KS, 0) <= ALPHA).mean()), ALPHA
    )


def _welch(a_SG: Floats, b_SG: Floats) -> Floats:
    """Two-sided p-values of Welch's t-test, study by study, NaN left out; shape (S,). 1.0 where neither side varies."""
    n_a, n_b = (~np.isnan(a_SG)).sum(axis=1), (~np.isnan(b_SG)).sum(axis=1)
    square_a, square_b = np.nanvar(a_SG, axis=1, ddof=1) / n_a, np.nanvar(b_SG, axis=1, ddof=1) / n_b
    error = np.maximum(square_a + square_b, 1e-30)
    freedom = error**2 / np.maximum(square_a**2 / (n_a - 1) + square_b**2 / (n_b - 1), 1e-60)
    t = (np.nanmean(a_SG, axis=1) - np.nanmean(b_SG, axis=1)) / np.sqrt(error)
    return np.where(square_a + square_b > 0, 2 * stats.t.sf(np.abs(t), freedom), 1.0)


def check_power(setting: Setting, rng: np.random.Generator) -> Iterator[tuple]:
    """How often a planted shift is found, beside what ``power_of`` foretells from its mean and spread."""
    pool, n_groups = setting.pool, len(setting.pool.success_N) // ROLLOUTS
    for effect in EFFECTS:
        scores = Scores("noise", pool, setting.studies, rng)
        lead, plain = pool.pairs[LEAD], pool.pairs["question_only"]
        shifted = scores.of(lead) + effect * pool.success_N[lead.target_R]
        a = setting.studied(pair_values(shifted, lead, n_groups)[0])
        b = setting.studied(pair_values(scores.of(plain), plain, n_groups)[0])
        p = sign_flip_p_values(a - b, flips=setting.flips, seed=setting.seed)
        forecast = power_of(float((a - b).mean()), float((a - b).std(axis=0, ddof=1).mean()), setting.groups)
        name = f"sign flips, AUC +{(a - b).mean():.3f}"
        yield setting.row("planted effect", name, "power", float((p <= ALPHA).mean()), forecast)


def validate(
    *, studies: int, groups: Sequence[int], pool: int = 240, draws: int = DRAWS, flips: int = 1999, seed: int = 0
) -> pl.DataFrame:
    """Simulate and count: the rows of ``RESULTS``.

    Args:
        studies: simulated under each null for each number of groups.
        groups: of a study.
        pool: groups planned, from which each study draws its own.
        draws: of each bootstrap.
        flips: of each sign-flip test.
        seed: of everything.

    Raises:
        ValueError: the pool has fewer groups that can be compared than a study wants.
    """
    rng = np.random.default_rng(seed)
    planned = make_pool(pool, rng)
    found: list[tuple] = []
    for n in groups:
        if len(planned.supported) < n:
            raise ValueError(
                f"of {pool} simulated groups {len(planned.supported)} can be compared, fewer than the {n} of a study; "
                "give a larger --pool"
            )
        places = np.argsort(rng.random((studies, len(planned.supported))), axis=1)[:, :n].T
        setting = Setting(
            pool=planned,
            studies=studies,
            groups=n,
            draws=draws,
            flips=flips,
            seed=seed,
            chosen_GS=planned.supported[places],
        )
        for null in NULLS:
            found += check_null(null, setting, rng)
        found += check_power(setting, rng)
    return judge(pl.DataFrame(found, schema=RESULTS, orient="row"))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.validate", description=__doc__, formatter_class=Help, allow_abbrev=False
    )
    add = parser.add_argument
    add("--studies", type=int, default=2000, help="simulated studies under each null")
    add("--groups", type=int, nargs="+", default=[12, 30], help="groups of a study")
    add("--pool", type=int, default=240, help="groups planned, from which the studies draw")
    add("--draws", type=int, default=DRAWS, help="bootstrap draws")
    add("--flips", type=int, default=1999, help="sign flips")
    add("--seed", type=int, default=0, help="of everything")
    add("--output", type=Path, metavar="FILE.parquet", help="also write the table")
    add_config(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(build_parser(), argv)
    started = time.monotonic()
    try:
        table = validate(
            studies=args.studies,
            groups=args.groups,
            pool=args.pool,
            draws=args.draws,
            flips=args.flips,
            seed=args.seed,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(table, args.output)
    print(report(table, args.studies, time.monotonic() - started))
    return int(table["verdict"].is_in(["too often", "too narrow"]).any())


def report(table: pl.DataFrame, studies: int, seconds: float) -> str:
    """The table as text, a block for each number of groups, and what it comes to."""
    parts = []
    for (groups,), part in table.group_by("groups", maintain_order=True):
        body = [
            [f"{r['null']}: {r['statistic']}", r["kind"], f"{r['rate']:.3f}", f"{r['nominal']:.3f}", r["verdict"]]
            for r in part.iter_rows(named=True)
        ]
        title = f"{studies} studies of {groups} groups under each null"
        parts.append("\n".join([title, text_table(["statistic", "kind", "rate", "promise", "verdict"], body)]))
    broken = table.filter(pl.col("verdict").is_in(["too often", "too narrow"]))
    parts.append(
        f"{broken.height} of {table.height} rates break their promise by more than {MOST_ERRORS} Monte-Carlo standard "
        "errors; "
        f"{seconds:.0f} s"
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
