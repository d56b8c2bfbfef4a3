"""Strata worked by hand on a small study, and the degenerate groups that every table must survive."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from analysis import benchmark
from analysis.benchmarks.statistics import SCORES as BENCHMARK_SCORES
from analysis.benchmarks.statistics import synthetic_tables
from mopd.calibration import calibration_tables
from mopd.confounds import CONFOUND_TABLE, STRATA, Pairs, _majority_is_right, confound_tables, pair_strata
from mopd.contrasts import clustering_table, contrast_families
from mopd.derived import derived_table
from mopd.inference import metric_table
from mopd.metrics import group_values
from mopd.study import SCORES, StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from tests.test_study import labelled_rollouts

PEERS = pl.List(pl.Struct({"rollout_id": pl.String, "role": pl.String}))


def small_study() -> dict[str, pl.DataFrame]:
    """One group: success s, failures f and h, peers p (success) and q (failure); pairs s|f and s|h, two conditions."""
    rollouts = pl.DataFrame(
        {
            "task": "t",
            "group_id": "g",
            "rollout_id": ["s", "f", "h", "p", "q"],
            "success": [True, False, False, True, False],
            "answer": ["4", " 5", "6", "4", "5"],
            "response": ["aaaa", "aaab", "zzzz", "aaaa", "bbbb"],
        }
    )
    rows = [
        ("t", "leave_pair_out", cond, "g", f"s|{bad}", target, target == "s", f"{cond}{bad}", True)
        for cond in ("1f", "question_only")
        for bad in ("f", "h")
        for target in ("s", bad)
    ]
    names = ["task", "protocol", "condition", "group_id", "unit_id", "rollout_id", "success", "context_id", "supported"]
    assignments = pl.DataFrame(rows, schema=names, orient="row")
    contexts = pl.DataFrame(
        {
            "context_id": ["1ff", "1fh", "question_onlyf", "question_onlyh"],
            "peers": [[{"rollout_id": "q", "role": "failure"}]] * 2 + [[], []],
        },
        schema_overrides={"peers": PEERS},
    )
    scores = assignments.select("context_id", "rollout_id").with_columns(
        n_tokens=pl.col("rollout_id").replace_strict({"s": 10, "f": 12, "h": 13}),
        teacher_mean=pl.Series([0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0]),
    )
    return {"rollouts": rollouts, "assignments": assignments, "contexts": contexts, "scores": scores}


def in_order(tables: dict[str, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    return tables["rollouts"], tables["assignments"], tables["contexts"], tables["scores"]


def test_strata_by_hand() -> None:
    tables = small_study()
    found = confound_tables(*in_order(tables), score_names=["teacher_mean"], draws=200)
    assert dict(found["confounds"].schema) == CONFOUND_TABLE
    auc = {
        (row["stratum"], row["condition"]): row
        for row in found["confounds"].filter(pl.col("measure") == "auc").iter_rows(named=True)
    }
    assert len(auc) == 2 * len(STRATA)
    # s|f: 13/10 is beyond 1.25 times, 12/10 is not. To q = bbbb: s is at 0, f (aaab) at 1/4, h (zzzz) at 0.
    # q's answer is that of f and not that of h. Answers 4, 5, 6, 4, 5: right and wrong tie. 2 of 5 succeed: medium.
    members = {"all": "fh", "length matched": "f", "edit matched": "h", "same wrong answer": "f"}
    members |= {"other wrong answer": "h", "medium": "fh"}
    won = {("1f", "f"): 1.0, ("1f", "h"): 0.0, ("question_only", "f"): 0.5, ("question_only", "h"): 1.0}
    for (stratum, condition), row in auc.items():
        pairs = members.get(stratum, "")
        expected = np.mean([won[condition, p] for p in pairs]) if pairs else None
        assert (row["value"], row["n_pairs"], row["n_groups"]) == (expected, len(pairs), int(bool(pairs))), stratum
        assert row["ci_low"] is None  # one group
        gain = np.mean([won["1f", p] - won["question_only", p] for p in pairs]) if pairs else None
        assert row["difference"] == (None if condition == "question_only" else gain)
    unknown = {stratum: row["n_unknown"] for (stratum, _), row in auc.items()}
    # all responses are single words, so no run of four words: the n-gram overlap is not known
    assert {name for name, n in unknown.items() if n == 2} == {
        "n-gram matched",
        "length and similarity matched",
        "majority right",
        "majority wrong",
    }


@pytest.mark.parametrize(
    ("answers", "labels", "right"),
    [
        (["4", " 4", "5"], [True, True, False], True),
        (["4", "5", "5 "], [True, False, False], False),
        (["4", "5"], [True, False], None),  # a tie
        (["4", "4", "", " ", ""], [True, True, False, False, False], True),  # an empty answer is none
        (["4", "4", None, None, None], [True, True, False, False, False], True),
        ([None, ""], [True, False], None),
        ([], [], None),
    ],
)
def test_the_majority_is_of_those_who_answered(
    answers: list[str | None], labels: list[bool], right: bool | None
) -> None:
    assert _majority_is_right(labels, answers) is right


def test_similarity_rows_by_hand() -> None:
    found = confound_tables(*in_order(small_study()), score_names=["teacher_mean"], draws=200)["confounds"]
    rows = found.filter((pl.col("measure") == "edit_similarity") & (pl.col("condition") == "1f"))
    # s at 0; f at 1/4 and h at 0
    assert dict(rows.select("stratum", "value").rows()) == {
        "success": 0.0,
        "failure": 0.125,
        "success - failure": -0.125,
    }
    bare = found.filter((pl.col("measure") == "edit_similarity") & (pl.col("condition") == "question_only"))
    assert bare["value"].to_list() == [None] * 3
    duplicates = found.filter(pl.col("measure") == "near_duplicate_rate")
    assert duplicates.select("value", "n_groups").rows() == [(2 / 5, 1)]  # aaaa twice


def test_pairs_that_lack_a_side_are_refused_and_a_missing_score_drops_its_pair_everywhere() -> None:
    tables = small_study()
    rows = tables["assignments"].join(tables["scores"], on=["context_id", "rollout_id"])
    rows = rows.with_columns(edit_similarity=pl.lit(None, pl.Float64), ngram_overlap=pl.lit(None, pl.Float64))
    with pytest.raises(ValueError, match="not on common support"):
        Pairs.of(rows.head(7), ["teacher_mean"])
    missing = rows.with_columns(
        teacher_mean=pl.when(pl.col("context_id") == "1ff").then(None).otherwise("teacher_mean")
    )
    pairs = Pairs.of(missing, ["teacher_mean"])
    assert np.isnan(pairs.won_UCS[0]).all()
    assert not np.isnan(pairs.won_UCS[1]).any()
    strata = pair_strata(pairs, tables["rollouts"], tables["contexts"])
    assert list(strata) == list(STRATA)


def test_strata_hold_the_same_pairs_under_every_condition() -> None:
    tables = synthetic_tables(groups=12, conditions=8, words=30, seed=0)
    found = confound_tables(*in_order(tables), score_names=BENCHMARK_SCORES, draws=200)["confounds"]
    place = ["task", "stratum", "score"]
    counts = found.filter(pl.col("measure") == "auc").group_by(place).agg(pl.col("n_pairs", "n_groups").n_unique())
    assert counts.select("n_pairs", "n_groups").unique().rows() == [(1, 1)]
    own = found.filter((pl.col("measure") == "auc") & (pl.col("stratum") == "all") & (pl.col("task") == "all"))
    scored = tables["assignments"].join(
        tables["scores"].drop("condition", "protocol", "group_id", "success"), on=["context_id", "rollout_id"]
    )
    plain = metric_table(group_values(scored, BENCHMARK_SCORES, ["auc"]), draws=200)
    plain = plain.filter((pl.col("protocol") == "leave_pair_out") & (pl.col("task") == "all"))
    keys = ["score", "condition"]
    columns = [*keys, "value", "ci_low", "ci_high", "n_groups", "n_pairs"]
    for a, b in zip(own.sort(keys).select(columns).rows(), plain.sort(keys).select(columns).rows(), strict=True):
        assert a[:2] == b[:2]
        assert a[2:] == pytest.approx(b[2:])


DEGENERATE = {
    "one success": [[1, 0, 0, 0, 0, 0]] * 4,
    "one failure": [[1, 1, 1, 1, 1, 0]] * 4,
    "two groups": [[1, 1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 0]],
    "one group": [[1, 1, 0, 0, 1, 0]],
    "mixed": [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0] * 6, [1] * 6],
}


@pytest.mark.parametrize("score", ["constant", "ties", "noise"])
@pytest.mark.parametrize("labels", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_groups_give_nulls_or_what_they_must_and_never_a_crash(labels: list[list[int]], score: str) -> None:
    config = StudyConfig(
        conditions=["question_only", "shell_only"], protocols=["leave_pair_out", "split", "self_exclusion"]
    )
    study = run_study(labelled_rollouts(labels), ScriptedTeacher("noise"), config)
    values = np.random.default_rng(0).normal(size=study.scores.height)
    values = {"constant": np.full_like(values, -0.5), "ties": np.sign(values), "noise": values}[score]
    scores = study.scores.with_columns(**{name: pl.Series(values) for name in SCORES})
    scored = study.assignments.filter("supported").join(
        scores.select("context_id", "rollout_id", *SCORES), on=["context_id", "rollout_id"]
    )
    by_group = group_values(scored, SCORES)
    tables = {
        "metrics": metric_table(by_group, draws=200),
        "contrasts": contrast_families(by_group, draws=200),
        "clustering": clustering_table(scored, SCORES),
        "derived": derived_table(scored, draws=200),
        **calibration_tables(scored, SCORES),
        **confound_tables(study.rollouts, study.assignments, study.contexts, scores, SCORES, draws=200),
    }
    for name, table in tables.items():
        for column in table.select(pl.selectors.float()).columns:
            assert not table[column].is_nan().any(), (name, column)
    n_groups = len(set(by_group["group_id"]))
    for name in ("metrics", "contrasts", "confounds"):
        value = "difference" if name == "contrasts" else "value"
        undefined = tables[name].filter(pl.col("n_groups") == 0)
        assert undefined[value].null_count() == undefined.height, name
        few = tables[name].filter(pl.col("n_groups") < 2)
        assert few["ci_low"].null_count() == few.height, name
    if score == "constant":
        auc = tables["metrics"].filter(pl.col("metric") == "auc")["value"].drop_nulls().to_list()
        assert set(auc) <= {0.5}
        correlations = ["spearman", "kendall_tau_b", "goodman_kruskal_gamma", "point_biserial"]
        assert tables["metrics"].filter(pl.col("metric").is_in(correlations))["value"].drop_nulls().is_empty()
        partial = tables["confounds"].filter(pl.col("measure") == "partial_spearman")
        assert partial["value"].drop_nulls().is_empty()
    if n_groups == 2 and score == "noise":
        both = tables["metrics"].filter((pl.col("n_groups") == 2) & (pl.col("metric") == "margin"))
        widths = (both["ci_high"] - both["ci_low"]).drop_nulls()
        assert (widths > 0).all()


def test_the_benchmark_times_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["statistics", "--groups", "8", "--conditions", "3", "--draws", "200", "--words", "20"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    # 8 groups x 3 conditions x (16 pairs of 2 + 4 splits of 4)
    assert report["scored_rows"] == 8 * 3 * (32 + 16)
    assert list(report["seconds"])[-3:] == ["derived", "calibration", "confounds"]
