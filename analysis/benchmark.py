"""Speed and memory of mopd's parts, and the coverage of its intervals.

``python -m analysis.benchmark metrics`` times the way from a scored frame to the metric and contrast tables.
``python -m analysis.benchmark coverage`` measures how often nominal intervals hold the true mean.
``python -m analysis.benchmark statistics`` times everything that a study does after scoring.
``python -m analysis.benchmark generate`` compares the sampling backends on a real model.
``python -m analysis.benchmark scoring`` times a teacher on rollouts, against naive scoring and the machine's limits.
``python -m analysis.benchmark verify`` judges code rollouts in the sandbox on all cores.
``python -m analysis.benchmark app`` builds a large study and times the app's views in a browser.
Each prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.benchmarks import app, scoring
from analysis.benchmarks.generate import add_generate
from analysis.benchmarks.statistics import add_statistics
from analysis.benchmarks.verify import add_verify
from mopd.inference import bootstrap_intervals, contrast_table, metric_table
from mopd.metrics import group_values

SCORES = ("teacher_mean", "delta_mean", "delta_sum")
ROLLOUTS, SUCCESSES = 8, 4  # of a group: 4 x 4 = 16 pairs
SPLITS = 4


def synthetic_scores(*, groups: int, conditions: int, seed: int) -> pl.DataFrame:
    """A scored frame: 16 pairs a group under leave_pair_out, 4 splits of 8 targets a group under split.

    Scores are normal noise in nats, with a shift for successes that grows with the condition's number.
    """
    rng = np.random.default_rng(seed)
    pairs = [(i, j) for i in range(SUCCESSES) for j in range(SUCCESSES, ROLLOUTS)]
    layouts = {
        "leave_pair_out": [(f"{i}-{j}", target) for i, j in pairs for target in (i, j)],
        "split": [(f"split-{r}", target) for r in range(SPLITS) for target in range(ROLLOUTS)],
    }
    names = ["question_only", *(f"condition_{c:02d}" for c in range(1, conditions))]
    frames = []
    for protocol, layout in layouts.items():
        units, targets = zip(*layout, strict=True)
        rows = pl.DataFrame(
            {
                "unit_id": units,
                "rollout_id": [f"rollout-{t}" for t in targets],
                "success": [t < SUCCESSES for t in targets],
            }
        )
        place = pl.DataFrame({"group_id": [f"group-{g:06d}" for g in range(groups)]}).join(
            pl.DataFrame({"condition": names, "shift": np.linspace(0.0, 1.0, conditions)}), how="cross"
        )
        frames.append(place.join(rows, how="cross").with_columns(protocol=pl.lit(protocol)))
    scored = pl.concat(frames)
    shift = scored["success"].to_numpy() * scored["shift"].to_numpy()
    return scored.drop("shift").with_columns(
        pl.Series(score, shift + rng.normal(size=scored.height)) for score in SCORES
    )


def metrics_command(options: argparse.Namespace) -> dict[str, Any]:
    """Time group values, metric table and contrast table; seconds of wall clock, memory in MiB."""
    scored = synthetic_scores(groups=options.groups, conditions=options.conditions, seed=options.seed)
    memory_before = _peak_mib()
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        start = time.perf_counter()
        frame = step()
        seconds[name] = time.perf_counter() - start
        print(f"{name:<16}{seconds[name]:>8.2f} s{frame.height:>12,} rows")
        return frame

    print(
        f"{options.groups:,} groups x {options.conditions} conditions, {len(SCORES)} scores, two protocols: "
        f"{scored.height:,} scored rows; {options.draws:,} draws"
    )
    values = timed("group values", lambda: group_values(scored, SCORES))
    timed("metric table", lambda: metric_table(values, draws=options.draws, seed=options.seed))
    timed("contrast table", lambda: contrast_table(values, draws=options.draws, seed=options.seed))
    total = sum(seconds.values())
    print(f"{'total':<16}{total:>8.2f} s{'peak':>12} {_peak_mib():,.0f} MiB ({memory_before:,.0f} before)")
    return {
        "benchmark": "metrics",
        "groups": options.groups,
        "conditions": options.conditions,
        "draws": options.draws,
        "scored_rows": scored.height,
        "seconds": {name.replace(" ", "_"): round(value, 3) for name, value in seconds.items()},
        "total_seconds": round(total, 3),
        "peak_mib": round(_peak_mib()),
        "peak_mib_before": round(memory_before),
    }


Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
GROUP_VALUES: dict[str, tuple[float, Draw]] = {
    "one pair, 0.5": (0.5, lambda rng, shape: rng.binomial(1, 0.5, shape)),
    "one pair, 0.7": (0.7, lambda rng, shape: rng.binomial(1, 0.7, shape)),
    "one pair, ties": (0.6, lambda rng, shape: rng.choice([0.0, 0.5, 1.0], shape, p=[0.3, 0.2, 0.5])),
    "4 pairs, 0.8": (0.8, lambda rng, shape: rng.binomial(4, 0.8, shape) / 4),
    "4 pairs, 0.9": (0.9, lambda rng, shape: rng.binomial(4, 0.9, shape) / 4),
    "12 pairs, 0.9": (0.9, lambda rng, shape: rng.binomial(12, 0.9, shape) / 12),
    "overdispersed": (2 / 2.6, lambda rng, shape: rng.binomial(7, rng.beta(2.0, 0.6, shape)) / 7),
    "skewed, smooth": (5 / 6, lambda rng, shape: rng.beta(5.0, 1.0, shape)),
    "uniform": (0.5, lambda rng, shape: rng.random(shape)),
}
"""Distributions of group AUCs, from a single 0-or-1 pair a group to smooth: true mean and sampler (G,
seeds)."""


def coverage_command(options: argparse.Namespace) -> dict[str, Any]:
    """Share of simulated studies whose interval holds the true mean, by distribution and number of groups."""
    sizes = (6, 8, 12, 20, 30, 60)
    print(f"{'group values':<18}" + "".join(f"{f'{size} groups':>12}" for size in sizes))
    table: dict[str, list[float]] = {}
    for name, (mean, draw) in GROUP_VALUES.items():
        table[name] = []
        for size in sizes:
            values_GK = draw(np.random.default_rng([options.seed, size]), (size, options.seeds)).astype(float)
            _, low, high, _ = bootstrap_intervals(values_GK, draws=options.draws, seed=options.seed)
            table[name].append(float(((low <= mean + 1e-12) & (high >= mean - 1e-12)).mean()))
        print(f"{name:<18}" + "".join(f"{share:>12.3f}" for share in table[name]))
    by_size = np.array(list(table.values()))
    for label, row in (("lowest", by_size.min(axis=0)), ("mean", by_size.mean(axis=0))):
        print(f"{label:<18}" + "".join(f"{share:>12.3f}" for share in row))
    return {"benchmark": "coverage", "groups": sizes, "seeds": options.seeds, "coverage": table}


def _peak_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str] | None = None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmark", description="Speed of the parts, coverage of the intervals."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    metrics = commands.add_parser("metrics", help="scored frame to tables", formatter_class=formatter)
    metrics.add_argument("--groups", type=int, default=1000, help="rollout groups")
    metrics.add_argument("--conditions", type=int, default=10, help="context conditions")
    metrics.add_argument("--draws", type=int, default=2000, help="bootstrap draws")
    metrics.add_argument("--seed", type=int, default=0, help="seed of data and draws")
    metrics.set_defaults(run=metrics_command)

    coverage = commands.add_parser("coverage", help="coverage of intervals", formatter_class=formatter)
    coverage.add_argument("--seeds", type=int, default=4000, help="simulated studies per cell")
    coverage.add_argument("--draws", type=int, default=2000, help="bootstrap draws")
    coverage.add_argument("--seed", type=int, default=0, help="seed of data and draws")
    coverage.set_defaults(run=coverage_command)

    add_statistics(commands, formatter)
    add_generate(commands, formatter)
    add_verify(commands, formatter)
    speed = commands.add_parser("scoring", help="speed of scoring", formatter_class=formatter)
    scoring.add_arguments(speed)
    speed.set_defaults(run=scoring.command)
    looking = commands.add_parser("app", help="speed and memory of the app in a browser", formatter_class=formatter)
    app.add_arguments(looking)
    looking.set_defaults(run=app.command)

    options = parser.parse_args(arguments)
    print(json.dumps(options.run(options)))


if __name__ == "__main__":
    main()
