"""Asking the teacher: which contexts, which items, and the table by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import answers
from mopd import samples, tasks
from mopd.generation import Completion, Sampling
from mopd.rollouts import Prompt, read_rollouts
from mopd.tokens import ByteCodec

STUDY = Path(samples.__file__).parent / "studies" / "arithmetic"


class Copier:
    """Right wherever a correct solution stands in the prompt, which it repeats; wrong otherwise."""

    codec = ByteCodec()
    window: int | None = None
    seeded = True

    def provenance(self) -> Mapping[str, Any]:
        return {"backend": "script", "model": "copier", "engine": "script 1"}

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        return [[self._answer(p if isinstance(p, str) else p[-1]["content"])] * n for p in prompts]

    def _answer(self, prompt: str) -> Completion:
        _, marked, rest = prompt.partition("A correct solution to this problem:\n\n")
        text = rest.split("\n\nAnother")[0] if marked else "I cannot tell."
        return Completion(text=text, ids=tuple(self.codec.encode_text(text)), finished=True)


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(STUDY / "contexts.parquet"), pl.read_parquet(STUDY / "assignments.parquet")


def pick(**changes: Any) -> pl.DataFrame:
    contexts, assignments = tables()
    settings = {"conditions": ["question_only", "2s"], "protocol": "leave_pair_out", "each": 2, "limit": 5, "seed": 0}
    return answers.pick_contexts(contexts, assignments, **settings | changes)


def test_every_condition_has_the_same_groups_and_its_own_contexts() -> None:
    picked = pick()
    per = picked.group_by("group_id", "condition").len()
    assert picked["group_id"].n_unique() == 5
    assert dict(per.filter(condition="question_only")["len"].value_counts().iter_rows()) == {1: 5}  # there is but one
    assert dict(per.filter(condition="2s")["len"].value_counts().iter_rows()) == {2: 5}
    assert set(picked["protocol"]) == {"leave_pair_out"}
    assert pick().equals(picked)
    assert not pick(seed=1).equals(picked)


def test_a_condition_that_the_study_has_not_is_named_with_those_it_has() -> None:
    with pytest.raises(answers.AnswersError, match=r"no context of 7s under leave_pair_out; it has 1f, 1s,"):
        pick(conditions=["question_only", "7s"])


def test_an_item_is_the_context_with_the_reference_of_its_question() -> None:
    picked, rollouts = pick(), read_rollouts(STUDY)
    items = answers.items_of(picked, rollouts, seed=0, limit=None, source=None)
    assert [item.item_id for item in items] == picked["context_id"].to_list()
    known = {item.item_id: item for item in tasks.load("arithmetic")}
    for item, row in zip(items, picked.iter_rows(named=True), strict=True):
        assert item.reference == known[row["group_id"].split("@")[0]].reference
        assert item.prompt[-1] == row["messages"][-1]
    with pytest.raises(answers.AnswersError, match=r"[1-5] of 5 questions, .* --task-seed, --task-limit"):
        answers.items_of(picked, rollouts, seed=1, limit=5, source=None)
    foreign = rollouts.with_columns(task=pl.lit("unheard_of"))
    with pytest.raises(answers.AnswersError, match="unheard_of is no task of mopd"):
        answers.items_of(picked, foreign, seed=0, limit=None, source=None)


def answered(rows: Sequence[tuple[str, str, str, Sequence[bool | None]]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    picked = pl.DataFrame([{"context_id": c, "condition": n, "group_id": g} for c, n, g, _ in rows])
    judged = [
        {"group_id": f"{c}@0123", "success": good, "response_ids": [1, 2], "finished": place > 0}
        for c, _, _, verdicts in rows
        for place, good in enumerate(verdicts)
    ]
    return picked, pl.DataFrame(judged)


def test_the_table_by_hand() -> None:
    """Six groups. Alone the teacher is right in half of each; behind 2s always, but for one context of two in g0."""
    rows: list[Any] = [(f"q{i}", "question_only", f"g{i}", [True, False]) for i in range(6)]
    rows += [(f"s{i}", "2s", f"g{i}", [True, True]) for i in range(6)]
    rows += [("t0", "2s", "g0", [False, False])]  # g0: (1 + 0) / 2
    alone, shown = answers.accuracy_table(*answered(rows)).to_dicts()
    assert (alone["condition"], alone["accuracy"], alone["low"], alone["high"]) == ("question_only", 0.5, 0.5, 0.5)
    assert alone["difference"] is None
    assert alone["p_holm"] is None
    assert shown["accuracy"] == pytest.approx((0.5 + 5) / 6)
    assert shown["difference"] == pytest.approx(5 * 0.5 / 6)
    assert shown["p_holm"] == pytest.approx(2 / 32)  # five differences that are not 0: all alike in 2 of 32 signings
    assert (shown["tokens"], shown["cut"], shown["groups"]) == (2.0, 0.5, 6)


def test_what_nobody_could_judge_is_undefined_and_not_wrong() -> None:
    rows: list[Any] = [(f"q{i}", "question_only", f"g{i}", [True, True]) for i in range(7)]
    rows += [(f"s{i}", "2s", f"g{i}", [True, True] if i else [None, None]) for i in range(7)]
    _, shown = answers.accuracy_table(*answered(rows)).to_dicts()
    assert (shown["accuracy"], shown["difference"], shown["groups"]) == (1.0, 0.0, 6)
    _, none = answers.accuracy_table(*answered([rows[0], ("s0", "2s", "g0", [None, None])])).to_dicts()
    assert [none[name] for name in ("accuracy", "low", "difference", "p_holm")] == [None] * 4
    assert "| 2s | undefined | " in answers.render(
        answers.accuracy_table(*answered([rows[0], ("s0", "2s", "g0", [None])]))
    )


def test_answers_without_ids_and_ends_have_no_length() -> None:
    picked, judged = answered([("q0", "question_only", "g0", [True, False])])
    bare = judged.with_columns(
        response_ids=pl.lit(None, dtype=pl.List(pl.Int32)), finished=pl.lit(None, dtype=pl.Boolean)
    )
    table = answers.accuracy_table(picked, bare)
    assert answers.render(table).splitlines()[-1] == "| question_only | 0.500 |  |  | undefined | undefined | 1 |"


def test_the_command_asks_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "load_sampler", lambda options: Copier())
    words = [str(STUDY), "--conditions", "question_only", "2s", "--limit", "8", "--samples", "2"]
    words += ["--output", str(tmp_path / "answers.parquet"), "--csv", str(tmp_path / "out" / "table.csv")]
    assert answers.main(words) == 0
    out = capsys.readouterr().out
    assert "| question_only | 0.000 [0.000, 0.000] |  |  |" in out
    assert "| 2s | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.0078 |" in out  # 2 of 2 ** 8 signings
    assert pl.read_csv(tmp_path / "out" / "table.csv")["groups"].to_list() == [8, 8]
    monkeypatch.setattr(Copier, "sample", None)  # all answers are there
    assert answers.main(words) == 0
    assert answers.main([str(tmp_path)]) == 2
    assert "has no contexts.parquet" in capsys.readouterr().err
