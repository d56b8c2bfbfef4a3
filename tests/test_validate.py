"""The short form of ``analysis.validate``, and that it would notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import simulation, validate
from mopd import metrics
from mopd.conditions import condition
from mopd.partial import centred_ranks, group_moments
from mopd.peers import PROTOCOLS
from mopd.planning import Planner, assignment_frame
from mopd.tokens import ByteCodec


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return validate.validate(studies=300, groups=[15], pool=90, draws=500, flips=499)


def test_every_promise_is_kept(table: pl.DataFrame) -> None:
    broken = table.filter(pl.col("verdict").is_in(["too often", "too narrow"]))
    assert broken.is_empty(), broken.rows()
    assert set(table["null"]) == {*simulation.NULLS, "planted effect"}
    assert set(table["kind"]) == {"coverage", "false positives", "power", "published"}
    assert dict(table.schema) == validate.RESULTS


def test_the_published_bars_miss_the_truth(table: pl.DataFrame) -> None:
    bars = table.filter((pl.col("kind") == "published") & pl.col("statistic").str.contains("interval of question_only"))
    assert bars.height == len(simulation.NULLS)
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
    pool = simulation.make_pool(25, np.random.default_rng(3))
    groups = simulation.make_groups(25, np.random.default_rng(3))
    planner = Planner(
        codec=ByteCodec(),
        conditions=[condition(n) for n in simulation.CONDITIONS],
        protocols={name: PROTOCOLS[name] for name in ("leave_pair_out", "split")},
    )
    rows = assignment_frame(planner.plan(g) for g in groups).filter(
        pl.col("supported") & (pl.col("condition") == "2s1f")
    )
    scores = simulation.Scores("shuffled_labels", pool, 2, rng)  # one score a rollout
    number = {f"{g}-{i}": simulation.ROLLOUTS * g + i for g in range(25) for i in range(simulation.ROLLOUTS)}
    of_rollout = pl.Series([scores.target_SN[1, number[r]] for r in rows["rollout_id"]])
    real = metrics.group_values(rows.with_columns(teacher_mean=of_rollout))
    layout = pool.pairs["2s1f"]
    found = {"leave_pair_out": {"auc": simulation.pair_values(scores.of(layout), layout, 25)[0]}}
    splits = pool.splits["2s1f"]
    found["split"] = simulation.split_values(scores.of(splits), splits, pool)
    compared = 0
    for row in real.filter(pl.col("metric").is_in(list(found["split"]))).iter_rows(named=True):
        if row["metric"] in found[row["protocol"]]:
            value = found[row["protocol"]][row["metric"]][1, int(row["group_id"])]
            assert value == pytest.approx(float("nan") if row["value"] is None else row["value"], nan_ok=True)
            compared += 1
    assert compared > 50


def test_moments_are_those_of_the_real_path() -> None:
    pool = simulation.make_pool(25, np.random.default_rng(3))
    layout = pool.pairs["2s1f"]
    score = np.random.default_rng(1).normal(size=(2, len(layout.target_R))).round()  # with ties
    found = simulation.pair_moments(score, layout, 25, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    of_target = [rng.normal(size=(2, layout.target_R.max() + 1)) + 0.5 * pool.success_N[: layout.target_R.max() + 1]
                 for _ in range(2)]  # fmt: skip
    rows = np.column_stack([layout.success_P, layout.failure_P]).ravel()
    unit = np.repeat(np.arange(len(layout.group_P)), 2)
    target = layout.target_R[rows]
    columns = [score[1, rows], pool.success_N[target], *(x[1, target] for x in of_target)]
    variable = np.column_stack([centred_ranks(column, unit) for column in columns])
    expected = group_moments(variable, unit, np.repeat(layout.group_P, 2), 25)
    np.testing.assert_allclose(found[1], expected, atol=1e-12)
    assert np.isnan(expected[:, 0, 0]).sum() == 25 - len(pool.supported)


def test_a_study_without_an_interval_counts_neither_way() -> None:
    pool = simulation.make_pool(60, np.random.default_rng(0))
    setting = validate.Setting(
        pool=pool, studies=3, groups=6, draws=200, flips=99, seed=0, chosen_GS=np.zeros((6, 3), dtype=np.int64)
    )
    value_GS = np.column_stack([np.linspace(0, 1, 6), np.r_[np.linspace(0, 1, 5), np.nan], np.linspace(0.6, 1, 6)])
    held = validate._coverage("noise", "auc", value_GS, 0.5, setting)
    none = validate._coverage("noise", "auc", value_GS[:, 1:2], 0.5, setting)
    table = validate.judge(pl.DataFrame([held, none], schema=validate.RESULTS, orient="row"))
    # of three studies the second has five groups, too few; the third lies above 0.5
    assert table["rate"].to_list() == [0.5, None]
    assert table["error"].to_list() == [pytest.approx(np.sqrt(0.95 * 0.05 / 2)), None]
    assert table["verdict"].to_list() == ["nominal", ""]
    assert "undefined" in validate.report(table, 3, 0.0)
    assert "0 of 1 judged rates" in validate.report(table, 3, 0.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--studies", "0"], "studies must be at least 1, or there is nothing to count; got 0"),
        (["--groups", "12", "5"], "groups must be at least 6, or a study has no interval of 95%; got 5"),
        (["--flips", "9"], "flips must be at least 19, or no p-value reaches 0.05; got 9"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--studies", "1", "--groups", "8", "--pool", "60", "--draws", "9"], "draws must be at least 200"),
    ],
)
def test_what_can_count_nothing_is_refused(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main(option) == 2
    assert message in capsys.readouterr().err


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
