"""How many groups a study needs, planned from a pilot.

The test is taken as a two-sided t-test of the groups' paired differences, whose power is that of the noncentral t
(``scipy.stats.nct``). The sign-flip test that a study reports finds nothing with fewer than
``fewest_groups(1 - alpha)`` groups, however large the difference: of 2^G sign patterns two have the largest mean, so
that its smallest p-value is 2^(1-G). No plan names fewer. With just as many its power is .64 where .80 is foretold,
with four more about .79, and beyond that the same. The spread of the differences is the pilot's, so a plan is as
uncertain as that: with G groups in the pilot the standard deviation is known to about 1/sqrt(2 (G - 1)) of itself.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl
from scipy import optimize, stats

from mopd.inference import fewest_groups

__all__ = ["POWER_TABLE", "detectable_difference", "groups_needed", "plan", "power_of"]

ALPHA = 0.05
POWER = 0.8
MOST_GROUPS = 10_000_000

POWER_TABLE = {
    **dict.fromkeys(("task", "condition", "reference", "protocol", "score", "metric"), pl.String()),
    "n_groups": pl.Int64(),
    "sd": pl.Float64(),
    "alpha": pl.Float64(),
    "detectable": pl.Float64(),
    "difference": pl.Float64(),
    "groups_needed": pl.Int64(),
}


def power_of(difference: float, sd: float, groups: int, *, alpha: float = ALPHA) -> float:
    """Chance that a two-sided paired t-test over ``groups`` groups finds a true ``difference``.

    Raises:
        ValueError: fewer than two groups, or a standard deviation that is not positive.
    """
    if groups < 2 or not sd > 0:
        raise ValueError(f"power needs two groups and a positive standard deviation, got {groups} groups and sd {sd}")
    shift = abs(difference) / sd * math.sqrt(groups)
    critical = float(stats.t.ppf(1 - alpha / 2, groups - 1))
    above = float(stats.nct.sf(critical, groups - 1, shift))
    if math.isnan(above):  # scipy gives up far from the centre, where the power is 1 to many digits
        return float(stats.norm.sf(critical - shift))
    below = float(stats.nct.cdf(-critical, groups - 1, shift))
    return above + (0.0 if math.isnan(below) else below)


def groups_needed(difference: float, sd: float, *, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Fewest groups that find a true ``difference`` with this power; None if that takes more than ten million.

    At least as many as let the sign-flip test reject at all.
    """
    if difference == 0:
        return None
    high = max(2, fewest_groups(1 - alpha))
    low = high - 1
    while power_of(difference, sd, high, alpha=alpha) < power:
        low, high = high, high * 2
        if high > MOST_GROUPS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, sd, middle, alpha=alpha) >= power else (middle, high)
    return high


def detectable_difference(sd: float, groups: int, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The true difference that ``groups`` groups find with this power."""
    top = sd
    while power_of(top, sd, groups, alpha=alpha) < power:
        top *= 2
    root: Any = optimize.brentq(lambda d: power_of(d, sd, groups, alpha=alpha) - power, 0.0, top, xtol=1e-9 * top)
    return float(root)


def plan(contrasts: pl.DataFrame, *, metric: str = "auc", power: float = POWER, alpha: float = ALPHA) -> pl.DataFrame:
    """A plan for each difference of the primary family of a pilot.

    Args:
        contrasts: ``contrasts.parquet`` of the pilot.
        metric: which metric is planned for.
        power: wanted.
        alpha: of the family. It is divided by the number of its members (Bonferroni), which is what Holm asks of the
            smallest p-value.

    Returns:
        ``POWER_TABLE``: ``detectable`` is what the pilot's own number of groups finds, null where they are too few for
        the sign-flip test to reject; ``groups_needed`` is what the pilot's difference would take. Both are null where
        the pilot has no spread or fewer than two groups.
    """
    rows = []
    primary = contrasts.filter((pl.col("family") == "primary") & (pl.col("metric") == metric))
    for _, part in primary.group_by("task", "protocol", "score", maintain_order=True):
        level = alpha / part.height
        for row in part.iter_rows(named=True):
            sd = row["sd"] or 0.0
            known = sd > 0 and row["n_groups"] > 1
            enough = known and row["n_groups"] >= fewest_groups(1 - level)
            detectable = detectable_difference(sd, row["n_groups"], power=power, alpha=level) if enough else None
            needed = groups_needed(row["difference"], sd, power=power, alpha=level) if known else None
            rows.append(
                (
                    *(row[name] for name in ("task", "condition", "reference", "protocol", "score", "metric")),
                    *(row["n_groups"], row["sd"], level, detectable, row["difference"], needed),
                )
            )
    return pl.DataFrame(rows, schema=POWER_TABLE, orient="row")
