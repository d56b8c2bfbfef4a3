"""The embedded model through the whole path, against plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mopd import models
from mopd.rollouts import read_rollouts
from mopd.samples import sample_path
from mopd.study import StudyConfig, run_study
from mopd.teachers.hf import HFTeacher
from tests.tiny import plain_log_probs, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.integration


def check_rows(study, model, n: int) -> None:
    """Recompute ``n`` rows of tokens.parquet one at a time with plain transformers, student and teacher."""
    rows = study.tokens.join(
        study.contexts.select("context_id", context="token_ids", group_id="group_id"), on="context_id"
    )
    bare = dict(
        study.contexts.filter(pl.col("condition") == "question_only").select("group_id", "token_ids").iter_rows()
    )
    sampled = rows.sample(min(n, rows.height), seed=0)
    assert sampled.height >= min(n, 50)
    for row in sampled.iter_rows(named=True):
        response = np.asarray(row["token_ids"])
        for column, context in (("teacher_logprob", row["context"]), ("student_logprob", bare[row["group_id"]])):
            want = plain_log_probs(model, np.asarray(context), response)
            np.testing.assert_allclose(row[column], want, atol=1e-4, rtol=0)


def test_fifty_rows_of_smollm2_equal_plain_transformers() -> None:
    teacher = HFTeacher.load("smollm2-135m")
    study = run_study(read_rollouts(sample_path("arithmetic")), teacher, StudyConfig(limit=1))
    assert study.info["counts"]["retokenised_responses"] == 0  # the sampler's ids, which decode to the response
    model = AutoModelForCausalLM.from_pretrained(models.resolve("smollm2-135m")).eval()
    check_rows(study, model, 50)


def test_a_context_of_smollm2_reads_as_it_should() -> None:
    tokenizer = AutoTokenizer.from_pretrained(models.resolve("smollm2-135m"))
    teacher = HFTeacher.load("smollm2-135m")
    rollouts = read_rollouts(sample_path("arithmetic"))
    study = run_study(rollouts, teacher, StudyConfig(conditions=["question_only", "1s1f"], limit=1))
    texts = dict(rollouts.select("rollout_id", "response").iter_rows())
    for row in study.contexts.iter_rows(named=True):
        text = tokenizer.decode(row["token_ids"])
        assert text.endswith("<|im_start|>assistant\n")
        assert text.count("<|im_start|>assistant") == 1
        prompt = rollouts.filter(pl.col("group_id") == row["group_id"])["prompt"][0]
        assert prompt[-1]["content"] in text
        for peer in row["peers"]:
            assert texts[peer["rollout_id"]].strip() in text
        if row["condition"] == "question_only":
            want = tokenizer.apply_chat_template(prompt.to_list(), add_generation_prompt=True, return_dict=False)
            assert row["token_ids"] == want


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_rows_of_tiny_families_equal_plain_transformers(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, max_position_embeddings=2048)
    teacher = HFTeacher(model, tiny_tokenizer(), name=family)
    study = run_study(read_rollouts(sample_path("arithmetic")), teacher, StudyConfig(limit=1))
    check_rows(study, model, 50)
