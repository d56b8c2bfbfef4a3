"""Do the tests and intervals keep their promises where nothing is to be found?

Simulates studies under nulls, in which no condition helps, and counts how often each test claims a difference and each
interval misses the truth. Units, contexts and common support are planned by the same code as a real study's; only the
teacher's scores are drawn.

Verdicts: nominal (within three Monte-Carlo standard errors of the promise), cautious (farther off, on the safe side),
too often (a test) and too narrow (an interval), which end the command with 1. Power and published rates are not judged.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from analysis.cli import Help, add_config, parse
from analysis.simulation import (
    LEAD,
    NULLS,
    RIVALS,
    Pool,
    Scores,
    make_pool,
    pair_moments,
    pair_values,
    split_values,
)
from analysis.tables import text_table
from mopd.contrasts import EQUIVALENCE_MARGIN, equivalence_p_values
from mopd.inference import DRAWS, benjamini_hochberg, bootstrap_intervals, fewest_groups, holm, sign_flip_p_values
from mopd.partial import partial_intervals
from mopd.power import power_of
from mopd.store import write_parquet

__all__ = ["main", "validate"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHA = 0.05
FEWEST_FLIPS = 19
"""Fewer drawn sign patterns give no p-value of ``ALPHA``."""
CONFIDENCE = 0.95
GIVEN_BOTH = "given length and similarity"
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

    def row(
        self, null: str, statistic: str, kind: str, rate: float | None, nominal: float, counted: int | None = None
    ) -> tuple:
        """A row of ``RESULTS``; ``counted`` studies make up the rate, all of them if it is left out."""
        n = self.studies if counted is None else counted
        error = float(np.sqrt(nominal * (1 - nominal) / n)) if n else None
        return (self.groups, null, statistic, kind, rate, nominal, error, "")


def judge(table: pl.DataFrame) -> pl.DataFrame:
    """The table with its verdicts: is each rate within ``MOST_ERRORS`` Monte-Carlo errors of its promise, or better?

    Of nothing but nominal rates one in 740 lies farther on the wrong side by chance: a run of 172 finds a broken
    promise in about a fifth of all seeds, and another seed tells chance from a broken promise. What is shown and not
    judged (published, power, a rate of no study) has "".
    """
    judged = ~pl.col("kind").is_in(["published", "power"]) & pl.col("rate").is_not_null()
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
    pool, n_groups = setting.pool, setting.pool.n_groups
    scores = Scores(null, pool, setting.studies, rng)
    lead_SR, values = np.empty(0), {}
    for name, layout in pool.pairs.items():
        score_SR = scores.of(layout)
        values[name] = pair_values(score_SR, layout, n_groups)
        lead_SR = score_SR if name == LEAD else lead_SR
    auc = {name: setting.studied(value[0]) for name, value in values.items()}
    for name in ("question_only", LEAD):
        yield _coverage(null, f"auc of {name}", auc[name], 0.5, setting)
    yield _coverage(null, f"margin of {LEAD}", setting.studied(values[LEAD][1]), 0.0, setting)
    difference = np.stack([auc[LEAD] - auc[rival] for rival in RIVALS])
    yield _coverage(null, f"auc of {LEAD} - question_only", difference[0], 0.0, setting)
    yield _partial_coverage(null, lead_SR, setting)
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
    """How often the interval of a mean over groups holds the truth."""

    def limits(start: int, seed: int) -> tuple[Floats, Floats]:
        values = value_GS[:, start : start + STUDIES_A_SEED]
        _, low, high, _ = bootstrap_intervals(values, draws=setting.draws, seed=seed)
        return low, high

    return _held(null, statistic, limits, truth, setting)


def _partial_coverage(null: str, score_SR: Floats, setting: Setting) -> tuple:
    """How often the interval of the partial rank correlation holds 0, as lengths and similarities go with the label."""
    rng = np.random.default_rng([setting.seed, 2])
    moment_SGVV = pair_moments(score_SR, setting.pool.pairs[LEAD], setting.pool.n_groups, rng)

    def limits(start: int, seed: int) -> tuple[Floats, Floats]:
        chosen = setting.chosen_GS[:, start : start + STUDIES_A_SEED].T
        moments = moment_SGVV[start + np.arange(len(chosen))[:, None], chosen]
        found = partial_intervals(moments, setting.draws, seed, CONFIDENCE, strata=[GIVEN_BOTH])
        _, low, high = np.array(found[GIVEN_BOTH]).T
        return low, high

    return _held(null, f"rank correlation of {LEAD} {GIVEN_BOTH}", limits, 0.0, setting)


def _held(
    null: str, statistic: str, limits: Callable[[int, int], tuple[Floats, Floats]], truth: float, setting: Setting
) -> tuple:
    """How often intervals hold the truth, of the studies that have one; null if none has.

    Studies share their resamples, and one set of them may be a little wide or narrow: a set for every few studies,
    whose limits ``limits`` gives from the first study and a seed.
    """
    held, kept = 0, 0
    for block, start in enumerate(range(0, setting.studies, STUDIES_A_SEED)):
        low, high = limits(start, setting.seed + block)
        given = ~np.isnan(low)  # too few groups define the value, and no interval promises anything
        held += int(((low <= truth + 1e-12) & (high >= truth - 1e-12))[given].sum())
        kept += int(given.sum())
    return setting.row(null, statistic, "coverage", held / kept if kept else None, CONFIDENCE, kept)


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
    pool, n_groups = setting.pool, setting.pool.n_groups
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
    pool, n_groups = setting.pool, setting.pool.n_groups
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
        groups: of a study, at least as many as an interval takes.
        pool: groups planned, from which each study draws its own.
        draws: of each bootstrap.
        flips: of each sign-flip test.
        seed: of everything.

    Raises:
        ValueError: a number is too small to count anything, or the pool has fewer groups that can be compared than a
            study wants.
    """
    fewest = fewest_groups(CONFIDENCE)
    for name, given, least, why in (
        ("studies", studies, 1, "there is nothing to count"),
        ("groups", min(groups, default=0), fewest, f"a study has no interval of {CONFIDENCE:.0%}"),
        ("flips", flips, FEWEST_FLIPS, f"no p-value reaches {ALPHA}"),
        ("seed", seed, 0, "it seeds nothing"),
    ):
        if given < least:
            raise ValueError(f"{name} must be at least {least}, or {why}; got {given}")
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
    add("--groups", type=int, nargs="+", default=[12, 30], help="groups of a study, one number or several")
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
    """The table as text, a block for each number of groups, and what it comes to.

    A rate is undefined where no study has an interval.
    """
    parts = []
    for (groups,), part in table.group_by("groups", maintain_order=True):
        body = [
            [
                f"{r['null']}: {r['statistic']}",
                r["kind"],
                "undefined" if r["rate"] is None else f"{r['rate']:.3f}",
                f"{r['nominal']:.3f}",
                r["verdict"],
            ]
            for r in part.iter_rows(named=True)
        ]
        title = f"{studies} studies of {groups} groups under each null"
        parts.append("\n".join([title, text_table(["statistic", "kind", "rate", "promise", "verdict"], body)]))
    broken = table.filter(pl.col("verdict").is_in(["too often", "too narrow"]))
    judged = table.filter(pl.col("verdict") != "")
    parts.append(
        f"{broken.height} of {judged.height} judged rates break their promise by more than {MOST_ERRORS} Monte-Carlo "
        f"standard errors; {seconds:.0f} s"
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
