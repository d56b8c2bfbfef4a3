"""The whole path with teachers whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from analysis.published import published_protocol, published_table
from mopd import inference, metrics
from mopd import study as study_module
from mopd.conditions import CONDITIONS, DEFAULT_CONDITIONS
from mopd.peers import PROTOCOLS
from mopd.planning import assignment_frame
from mopd.rollouts import validate_rollouts
from mopd.scoring import score_plans
from mopd.store import StudyError
from mopd.study import SCORES, NothingToCompare, Study, StudyConfig, run_study
from mopd.study_tables import context_frame, score_frame
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.teachers.scripted import SCRIPTED, ScriptedTeacher
from tests.helpers import make_rollouts

REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "reference" / "published_pipeline_oracle.json"
ALL = tuple(PROTOCOLS)


def labelled_rollouts(labels_PG: list[list[int]]) -> pl.DataFrame:
    """Groups with these labels; every response has its own text and one of several lengths."""
    return validate_rollouts(
        pl.DataFrame(
            [
                {
                    "group_id": f"g{p:03d}",
                    "rollout_id": f"g{p:03d}-{g}",
                    "task": "synthetic",
                    "prompt": [{"role": "user", "content": f"question {p}"}],
                    "response": f"answer {g} to {p}" + " more" * ((p + 3 * g) % 4),
                    "reward": float(label),
                    "finished": True,
                }
                for p, labels in enumerate(labels_PG)
                for g, label in enumerate(labels)
            ]
        )
    )


def mixed_labels(n_groups: int, size: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [(rng.random(size) < rng.beta(2, 2)).astype(int).tolist() for _ in range(n_groups)]


@pytest.fixture(scope="module")
def rollouts() -> pl.DataFrame:
    return labelled_rollouts(mixed_labels(24, 8))


def test_oracle_is_perfect_under_every_condition_protocol_and_score(rollouts: pl.DataFrame) -> None:
    study = run_study(rollouts, ScriptedTeacher("oracle"), StudyConfig(protocols=ALL))
    auc = study.metrics.filter(pl.col("metric") == "auc")
    assert auc.height == len(DEFAULT_CONDITIONS) * len(ALL) * len(SCORES)
    assert auc.select("value", "ci_low", "ci_high").unique().rows() == [(1.0, 1.0, 1.0)]
    for perfect in ("top1", "goodman_kruskal_gamma"):
        assert study.metrics.filter(pl.col("metric") == perfect)["value"].unique().to_list() == [1.0]
    # -0.1 against -0.5 nats a token
    margin = study.metrics.filter((pl.col("metric") == "margin") & (pl.col("score") == "teacher_mean"))
    np.testing.assert_allclose(margin["value"], 0.4, atol=1e-6)


@pytest.mark.parametrize("match", ["blocks", "tokens"])
def test_oracle_is_perfect_under_every_control(match: Literal["blocks", "tokens"]) -> None:
    rollouts = labelled_rollouts(mixed_labels(24, 10)).with_columns(
        feedback=pl.concat_str(pl.lit("not "), "response"), answer=pl.col("response").str.slice(-1)
    )
    names = tuple(CONDITIONS)
    study = run_study(rollouts, ScriptedTeacher("oracle"), StudyConfig(conditions=names, protocols=ALL, match=match))
    auc = study.metrics.filter(pl.col("metric") == "auc")
    assert auc.height == len(CONDITIONS) * len(ALL) * len(SCORES)
    assert auc["value"].unique().to_list() == [1.0]
    assert auc.select("protocol", "n_pairs").unique().height == len(ALL)  # one set of pairs for all conditions


def test_every_condition_is_measured_on_the_same_pairs(rollouts: pl.DataFrame) -> None:
    study = run_study(rollouts, ScriptedTeacher("noise"), StudyConfig(protocols=ALL))
    for protocol in ALL:
        rows = study.assignments.filter(pl.col("supported") & (pl.col("protocol") == protocol))
        per_condition = [
            set(part.select("group_id", "unit_id", "rollout_id").rows()) for part in rows.partition_by("condition")
        ]
        assert len(per_condition) == len(DEFAULT_CONDITIONS)
        assert all(keys == per_condition[0] for keys in per_condition)
        assert per_condition[0]
    counts = study.metrics.group_by("protocol", "score", "metric").agg(
        pl.col("n_pairs").n_unique(), pl.col("n_groups").n_unique()
    )
    assert counts.filter(pl.col("metric") == "auc").select("n_pairs", "n_groups").unique().rows() == [(1, 1)]


@pytest.mark.parametrize("script", [s for s in SCRIPTED if s != "oracle"])
def test_an_ignorant_teacher_is_at_chance(script: str) -> None:
    """The 95% interval covers 0.5 in at least 92% of 200 seeds, for each condition and each fair protocol."""
    rollouts = labelled_rollouts(mixed_labels(60, 8))
    config = StudyConfig(protocols=("leave_pair_out", "split"))
    protocols = {name: PROTOCOLS[name] for name in config.protocols}
    plans, _ = study_module.plan_groups(rollouts, ScriptedTeacher(script), config, protocols)
    assignments = assignment_frame(plans).filter("supported")
    contexts = context_frame(plans, script, "", False)
    covered: list[pl.DataFrame] = []
    for seed in range(200):
        tokens, _ = score_plans(plans, ScriptedTeacher(script, seed=seed))
        scores = score_frame(contexts, rollouts, tokens)
        scored = assignments.join(
            scores.select("context_id", "rollout_id", "teacher_mean"), on=["context_id", "rollout_id"], validate="m:1"
        )
        values = metrics.group_values(scored, "teacher_mean", ["auc"])
        table = inference.metric_table(values, draws=1000, seed=seed)
        covered.append(
            table.select("condition", "protocol", hit=(pl.col("ci_low") <= 0.5) & (pl.col("ci_high") >= 0.5))
        )
    share = pl.concat(covered).group_by("condition", "protocol").agg(pl.col("hit").mean())
    assert share.height == len(DEFAULT_CONDITIONS) * 2
    low = share.filter(pl.col("hit") < 0.92)
    assert low.is_empty(), low.rows()


def test_the_published_procedure_is_reproduced_and_refuted() -> None:
    if not REFERENCE.exists():
        pytest.skip(f"no reference figures at {REFERENCE}")
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    rollouts = labelled_rollouts(reference["labels"])
    names = sorted(reference["published"]["oracle"]["all_samples"])
    study = run_study(
        rollouts,
        ScriptedTeacher("oracle"),
        StudyConfig(conditions=names),
        protocols={"leave_pair_out": PROTOCOLS["leave_pair_out"], "published": published_protocol},
    )
    table = published_table(study)
    got = {(s, c): (auc, n) for s, c, auc, n in table.iter_rows()}
    for sample_set, conditions in reference["published"]["oracle"].items():
        for name, want in conditions.items():
            auc, n = got[sample_set, name]
            assert auc == pytest.approx(want["success_auc"], abs=5e-4), (sample_set, name)
            assert n == want["count_prompts"]
    valid = study.metrics.filter((pl.col("protocol") == "leave_pair_out") & (pl.col("metric") == "auc"))
    assert valid["value"].unique().to_list() == [1.0]


def test_undefined_is_null_and_counted() -> None:
    # g000: 4 + 4, fills 2s1f. g001: a lone success, so no pair keeps one to show. g002: all failed.
    rollouts = labelled_rollouts([[1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0]])
    study = run_study(rollouts, ScriptedTeacher("oracle"), StudyConfig(conditions=["question_only", "1s"]))
    auc = study.metrics.filter((pl.col("metric") == "auc") & (pl.col("score") == "teacher_mean"))
    assert auc["n_groups"].to_list() == [1, 1]
    assert auc["n_pairs"].to_list() == [16, 16]
    counts = study.info["counts"]
    assert counts["dropped"] == {"group_all_failure": 1}
    assert counts["units"] == {"leave_pair_out": {"units": 19, "units_compared": 16, "units_of_one_class": 0}}
    assert counts["undefined"] == {"leave_pair_out": {"1s": {"unfilled": 3}}}
    # an interval needs two groups
    assert auc["ci_low"].to_list() == [None, None]


def test_nothing_to_compare_says_what_is_there() -> None:
    with pytest.raises(NothingToCompare, match=r"none of 2 groups .*group_all_failure.*Ask for fewer peers"):
        run_study(labelled_rollouts([[1, 0], [0, 0]]), ScriptedTeacher("oracle"), StudyConfig(conditions=["1s"]))


def test_limit_counts_groups_that_can_be_compared(rollouts: pl.DataFrame) -> None:
    study = run_study(rollouts, ScriptedTeacher("oracle"), StudyConfig(limit=3))
    assert study.info["counts"]["groups_compared"] == 3
    assert study.info["counts"]["groups"] + study.info["counts"]["groups_not_looked_at"] == 24


def test_a_finished_study_is_read_again_and_another_is_refused(rollouts: pl.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    config = StudyConfig(conditions=["question_only", "1s1f"])
    first = run_study(rollouts, ScriptedTeacher("noise"), config, folder=folder)
    with pytest.raises(StudyError, match="--resume"):
        run_study(rollouts, ScriptedTeacher("noise"), config, folder=folder)

    class Silent(ScriptedTeacher):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
            raise AssertionError("a finished study must not be scored again")

    again = run_study(rollouts, Silent("noise"), config, folder=folder, resume=True)
    assert again.metrics.equals(first.metrics)
    assert again.tokens.equals(first.tokens)
    with pytest.raises(StudyError, match="another study"):
        run_study(rollouts, ScriptedTeacher("noise", seed=1), config, folder=folder, resume=True)
    assert not list(folder.glob(".*partial")) and not (folder / "shards").exists()  # noqa: PT018
    assert json.loads((folder / "study.json").read_text())["counts"] == first.info["counts"]


def test_an_interrupted_study_goes_on_to_the_same_tables(rollouts: pl.DataFrame, tmp_path: Path) -> None:
    config = StudyConfig(conditions=["question_only", "1s1f"])
    whole = run_study(rollouts, ScriptedTeacher("noise"), config, folder=tmp_path / "whole")

    class Dies(ScriptedTeacher):
        calls = 0

        def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
            Dies.calls += 1
            if Dies.calls == 5:
                raise KeyboardInterrupt
            return super().score(requests)

    with pytest.raises(KeyboardInterrupt):
        run_study(rollouts, Dies("noise"), config, folder=tmp_path / "broken")
    assert not (tmp_path / "broken" / "study.json").exists()
    Dies.calls = 100
    run_study(rollouts, Dies("noise"), config, folder=tmp_path / "broken", resume=True)
    assert Dies.calls < 100 + whole.info["counts"]["groups_compared"]  # the four finished groups were kept
    tables = [f.name for f in dataclasses.fields(Study) if f.name != "info"]
    assert len(tables) == 16
    for name in tables:
        left, right = (tmp_path / f / f"{name}.parquet" for f in ("whole", "broken"))
        assert left.read_bytes() == right.read_bytes(), name


def test_a_teacher_that_gives_no_number_is_named(rollouts: pl.DataFrame) -> None:
    class Broken(ScriptedTeacher):
        def _level(self, request: ScoreRequest) -> float:
            return float("nan")

    with pytest.raises(FloatingPointError, match="--dtype float32"):
        run_study(rollouts, Broken("noise"), StudyConfig(conditions=["1s"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ["3x"]}, "unknown condition '3x'; known are question_only"),
        ({"conditions": []}, "no condition given"),
        ({"protocols": ["jackknife"]}, "unknown protocol jackknife; known are leave_pair_out"),
        ({"protocols": []}, r"unknown protocol \(none\)"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"draws": 10}, "draws must be at least 200, got 10"),
        ({"confidence": 95.0}, "confidence must lie between 0 and 1, got 95"),
        ({"max_context_tokens": 0}, "max_context_tokens must be at least 1"),
        ({"match": "words"}, "'blocks' or 'tokens', got 'words'"),
        ({"on_overflow": "drop"}, "'shorten' or 'error', got 'drop'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyConfig(**settings)


def test_a_limited_study_of_several_tasks_takes_them_in_turns() -> None:
    frame = make_rollouts({f"{task}{i}": "ssff" if i else "ffff" for task in "abc" for i in range(4)})
    frame = frame.with_columns(task=pl.col("group_id").str.slice(0, 1))
    study = run_study(
        frame, ScriptedTeacher("oracle"), StudyConfig(conditions=["question_only", "1s"], limit=5, draws=200)
    )
    # Groups 0 have nothing to compare and take no turn: a1 b1 c1, then a2 b2.
    assert study.scores["group_id"].unique().sort().to_list() == ["a1", "a2", "b1", "b2", "c1"]
