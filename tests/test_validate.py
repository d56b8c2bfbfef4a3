"""The short form of ``analysis.validate``, and that it would notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import validate
from mopd import metrics
from mopd.conditions import condition
from mopd.peers import PROTOCOLS
from mopd.planning import Planner, assignment_frame
from mopd.tokens import ByteCodec


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return validate.validate(studies=300, groups=[15], pool=90, draws=500, flips=499)


def test_every_promise_is_kept(table: pl.DataFrame) -> None:
    broken = table.filter(pl.col("verdict").is_in(["too often", "too narrow"]))
    assert broken.is_empty(), broken.rows()
    assert set(table["null"]) == {*validate.NULLS, "planted effect"}
    assert set(table["kind"]) == {"coverage", "false positives", "power", "published"}
    assert dict(table.schema) == validate.RESULTS


def test_the_published_bars_miss_the_truth(table: pl.DataFrame) -> None:
    bars = table.filter((pl.col("kind") == "published") & pl.col("statistic").str.contains("interval of question_only"))
    assert bars.height == len(validate.NULLS)
    assert bars["rate"].max() < 0.8  # pyright: ignore[reportOperatorIssue]


def test_power_is_as_foretold(table: pl.DataFrame) -> None:
    power = table.filter(pl.col("kind") == "power")
    assert power.height == len(validate.EFFECTS)
    assert power["rate"].is_sorted()
    np.testing.assert_allclose(power["rate"], power["nominal"], atol=0.1)


def test_an_interval_that_is_too_narrow_and_a_test_that_rejects_too_often_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def narrow(values_GK: np.ndarray, **_: object) -> tuple[np.ndarray, ...]:
        mean, reach = values_GK.mean(axis=0), values_GK.std(axis=0) / np.sqrt(len(values_GK))
        return mean, mean - reach, mean + reach, np.full(len(mean), len(values_GK))

    monkeypatch.setattr(validate, "bootstrap_intervals", narrow)
    monkeypatch.setattr(validate, "sign_flip_p_values", lambda d, **_: np.random.default_rng(0).random(d.shape[1]) / 2)
    table = validate.validate(studies=200, groups=[10], pool=60, draws=200, flips=99)
    noise = table.filter(pl.col("null") == "noise")
    assert "too narrow" in noise.filter(pl.col("statistic") == "auc of 2s1f")["verdict"].to_list()
    assert "too often" in noise.filter(pl.col("statistic") == "sign flips")["verdict"].to_list()


def test_a_rate_may_be_three_standard_errors_off() -> None:
    rows = [
        (10, "noise", "a", "coverage", 0.95 - 2.9 * 0.01, 0.95, 0.01, ""),
        (10, "noise", "b", "false positives", 0.05 + 3.1 * 0.01, 0.05, 0.01, ""),
        (10, "noise", "c", "published", 0.1, 0.95, 0.01, ""),  # shown, not judged
    ]
    table = pl.DataFrame(rows, schema=validate.RESULTS, orient="row")
    assert validate.judge(table)["verdict"].to_list() == ["nominal", "too often", ""]
    flipped = table.with_columns(rate=2 * pl.col("nominal") - pl.col("rate"))
    assert validate.judge(flipped)["verdict"].to_list() == ["nominal", "cautious", ""]
    narrow = table.with_columns(rate=pl.col("nominal") - 3.1 * pl.col("error"))
    assert validate.judge(narrow)["verdict"].to_list() == ["too narrow", "cautious", ""]


def test_values_are_those_of_the_real_path() -> None:
    rng = np.random.default_rng(0)
    pool = validate.make_pool(25, np.random.default_rng(3))
    groups = validate.make_groups(25, np.random.default_rng(3))
    planner = Planner(
        codec=ByteCodec(),
        conditions=[condition(n) for n in validate.CONDITIONS],
        protocols={name: PROTOCOLS[name] for name in ("leave_pair_out", "split")},
    )
    rows = assignment_frame(planner.plan(g) for g in groups).filter(
        pl.col("supported") & (pl.col("condition") == "2s1f")
    )
    scores = validate.Scores("shuffled_labels", pool, 2, rng)  # one score a rollout
    number = {f"{g}-{i}": validate.ROLLOUTS * g + i for g in range(25) for i in range(validate.ROLLOUTS)}
    of_rollout = pl.Series([scores.target_SN[1, number[r]] for r in rows["rollout_id"]])
    real = metrics.group_values(rows.with_columns(teacher_mean=of_rollout))
    layout = pool.pairs["2s1f"]
    found = {"leave_pair_out": {"auc": validate.pair_values(scores.of(layout), layout, 25)[0]}}
    splits = pool.splits["2s1f"]
    found["split"] = validate.split_values(scores.of(splits), splits, pool)
    compared = 0
    for row in real.filter(pl.col("metric").is_in(list(found["split"]))).iter_rows(named=True):
        if row["metric"] in found[row["protocol"]]:
            value = found[row["protocol"]][row["metric"]][1, int(row["group_id"])]
            assert value == pytest.approx(float("nan") if row["value"] is None else row["value"], nan_ok=True)
            compared += 1
    assert compared > 50


def test_welch_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 12)), rng.normal(0.5, 2.0, size=(6, 12))
    b[:, :3] = np.nan
    expected = np.asarray(stats.ttest_ind(a, b, axis=1, equal_var=False, nan_policy="omit")[1])
    np.testing.assert_allclose(validate._welch(a, b), expected)


def test_the_door_writes_its_table_and_refuses_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sub" / "v.parquet"
    small = ["--studies", "50", "--pool", "60", "--draws", "200", "--flips", "99"]
    assert validate.main([*small, "--groups", "8", "--output", str(out)]) in (0, 1)  # 50 studies may well miss
    assert "50 studies of 8 groups under each null" in capsys.readouterr().out
    assert dict(pl.read_parquet_schema(out)) == validate.RESULTS
    assert validate.main([*small, "--groups", "60"]) == 2
    assert "give a larger --pool" in capsys.readouterr().err
