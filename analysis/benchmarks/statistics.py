"""Everything after scoring, timed: from the tables of a scored study to all tables of statistics.

The tables are made up in the shape that a study gives them: groups of eight rollouts with four successes, sixteen pairs
under ``leave_pair_out`` and four halvings under ``split``, each (condition, unit) with a context of its own, which is
the most that there can be. Responses are random words, scores normal noise with a shift for successes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from mopd import calibration, confounds, contrasts, derived, inference, metrics
from mopd.conditions import CONDITIONS

SCORES = ("teacher_mean", "delta_mean", "delta_sum")
TASKS = 4
ROLLOUTS, SUCCESSES, SPLITS, PEERS = 8, 4, 4, 3
FAMILY = [f"{k}s{m}f" for k in range(1, 6) for m in range(1, 6)]
"""Further conditions, where more are asked for than have a name of their own."""
VOCABULARY = 400


def add_statistics(commands: argparse._SubParsersAction, formatter: Any) -> None:
    """The command ``statistics``."""
    add = commands.add_parser("statistics", help="everything after scoring", formatter_class=formatter)
    add.add_argument("--groups", type=int, default=1000, help="rollout groups")
    add.add_argument("--conditions", type=int, default=20, help="context conditions")
    add.add_argument("--draws", type=int, default=10_000, help="bootstrap draws")
    add.add_argument("--words", type=int, default=120, help="words of a response")
    add.add_argument("--seed", type=int, default=0, help="seed of data and draws")
    add.set_defaults(run=statistics_command)


def condition_names(n: int) -> list[str]:
    """The first ``n`` conditions of the table, those of the primary family first, then members of the family.

    Raises:
        ValueError: more than there are.
    """
    names = list(dict.fromkeys([contrasts.PRIMARY[0], *contrasts.PRIMARY[1], *CONDITIONS, *FAMILY]))
    if not 1 <= n <= len(names):
        raise ValueError(f"conditions must be from 1 to {len(names)}, got {n}")
    return names[:n]


def synthetic_tables(*, groups: int, conditions: int, words: int, seed: int) -> dict[str, pl.DataFrame]:
    """``rollouts``, ``assignments``, ``contexts`` and ``scores`` of a study, those columns that statistics read."""
    rng = np.random.default_rng(seed)
    rollouts = _rollouts(groups, words, rng)
    place = (
        rollouts.select("task", "group_id")
        .unique(maintain_order=True)
        .join(pl.DataFrame({"condition": condition_names(conditions)}), how="cross")
    )
    assignments = pl.concat(
        place.join(_layout(protocol), how="cross").with_columns(protocol=pl.lit(protocol))
        for protocol in ("leave_pair_out", "split")
    ).with_columns(
        context_id=pl.concat_str("protocol", "condition", "group_id", "unit_id", separator="|"),
        rollout_id=pl.concat_str("group_id", pl.lit("-"), "target"),
        success=pl.col("target") < SUCCESSES,
        reason=pl.lit(None, pl.String),
        supported=pl.lit(True),
    )
    contexts = assignments.unique("context_id", maintain_order=True).select(
        "context_id", "condition", "protocol", "group_id", peers=_peers()
    )
    shift = assignments["success"].to_numpy() * 0.3
    scores = assignments.select(
        "context_id", "rollout_id", "condition", "protocol", "group_id", "success"
    ).with_columns(
        pl.Series("n_tokens", rng.integers(words // 2, 2 * words, assignments.height)),
        *(pl.Series(name, shift + rng.normal(size=assignments.height)) for name in SCORES),
    )
    kept = ["task", "protocol", "condition", "group_id", "unit_id", "rollout_id", "success", "context_id", "supported"]
    return {"rollouts": rollouts, "assignments": assignments.select(kept), "contexts": contexts, "scores": scores}


def _rollouts(groups: int, words: int, rng: np.random.Generator) -> pl.DataFrame:
    vocabulary = np.array([f"word{i}" for i in range(VOCABULARY)])
    texts = [" ".join(line) for line in vocabulary[rng.integers(0, VOCABULARY, (groups * ROLLOUTS, words))]]
    number = np.arange(groups * ROLLOUTS)
    ids = [f"group-{g:06d}" for g in number // ROLLOUTS]
    return pl.DataFrame(
        {
            "task": [f"task-{g % TASKS}" for g in number // ROLLOUTS],
            "group_id": ids,
            "rollout_id": [f"{g}-{i}" for g, i in zip(ids, number % ROLLOUTS, strict=True)],
            "response": texts,
            "success": number % ROLLOUTS < SUCCESSES,
            "answer": [str(a) for a in rng.integers(0, 3, len(number))],
        }
    )


def _layout(protocol: str) -> pl.DataFrame:
    """Units and targets of one group."""
    pairs = [(i, j) for i in range(SUCCESSES) for j in range(SUCCESSES, ROLLOUTS)]
    units = {f"{i}|{j}": (i, j) for i, j in pairs}
    if protocol == "split":  # halves of two successes and two failures
        units = {f"split{r}": (r % 4, (r + 1) % 4, 4 + r % 4, 4 + (r + 2) % 4) for r in range(SPLITS)}
    rows = [(unit, target) for unit, targets in units.items() for target in targets]
    return pl.DataFrame(rows, schema={"unit_id": pl.String, "target": pl.Int64}, orient="row")


def _peers() -> pl.Expr:
    """Two successes and a failure that are not of the pair (of a split: whichever); none for the bare prompt."""
    good, bad = pl.col("unit_id").str.extract(r"^(\d)"), pl.col("unit_id").str.extract(r"(\d)$")
    seat = good.cast(pl.Int64).fill_null(0), bad.cast(pl.Int64).fill_null(SUCCESSES)
    chosen = [(seat[0] + 1) % SUCCESSES, (seat[0] + 2) % SUCCESSES, SUCCESSES + (seat[1] - SUCCESSES + 1) % SUCCESSES]
    peers = [
        pl.struct(
            rollout_id=pl.concat_str("group_id", pl.lit("-"), seat_of), role=pl.lit("failure" if k == 2 else "success")
        )
        for k, seat_of in enumerate(chosen)
    ]
    none = pl.col("condition").is_in(["question_only", "shell_only"])
    return pl.when(~none).then(pl.concat_list(peers)).otherwise(pl.lit([]))


def statistics_command(options: argparse.Namespace) -> dict[str, Any]:
    """Time every step; seconds of wall clock, memory in MiB."""
    tables = synthetic_tables(
        groups=options.groups, conditions=options.conditions, words=options.words, seed=options.seed
    )
    stored = tables["rollouts"], tables["assignments"], tables["contexts"], tables["scores"]
    before = _peak_mib()
    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}
    settings: dict[str, Any] = {"draws": options.draws, "seed": options.seed}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = step()
        seconds[name], busy[name] = time.perf_counter() - start, time.process_time() - cpu
        rows = sum(frame.height for frame in (result.values() if isinstance(result, dict) else [result]))
        print(f"{name:<16}{seconds[name]:>8.2f} s{busy[name]:>8.2f} s of processor{rows:>12,} rows", flush=True)
        return result

    print(
        f"{options.groups:,} groups x {options.conditions} conditions, {len(SCORES)} scores, two protocols, {TASKS} "
        "tasks: "
        f"{tables['scores'].height:,} scored rows; {options.draws:,} draws"
    )
    scored = timed(
        "join",
        lambda: tables["assignments"].join(
            tables["scores"].select("context_id", "rollout_id", *SCORES),
            on=["context_id", "rollout_id"],
            how="left",
            validate="m:1",
        ),
    )
    values = timed("group values", lambda: metrics.group_values(scored, SCORES))
    timed("metrics", lambda: inference.metric_table(values, **settings))
    timed("contrasts", lambda: contrasts.contrast_families(values, **settings))
    timed("clustering", lambda: contrasts.clustering_table(scored, SCORES))
    timed("derived", lambda: derived.derived_table(scored, **settings))
    timed("calibration", lambda: calibration.calibration_tables(scored, SCORES, seed=options.seed))
    timed("confounds", lambda: confounds.confound_tables(*stored, SCORES, **settings))
    total, worked = sum(seconds.values()), sum(busy.values())
    print(
        f"{'total':<16}{total:>8.2f} s{worked:>8.2f} s of processor; peak {_peak_mib():,.0f} MiB ({before:,.0f} before)"
    )
    return {
        "benchmark": "statistics",
        "groups": options.groups,
        "conditions": options.conditions,
        "draws": options.draws,
        "scored_rows": tables["scores"].height,
        "seconds": {name.replace(" ", "_"): round(value, 3) for name, value in seconds.items()},
        "total_seconds": round(total, 3),
        "processor_seconds": round(worked, 3),
        "peak_mib": round(_peak_mib()),
        "peak_mib_before": round(before),
    }


def _peak_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
