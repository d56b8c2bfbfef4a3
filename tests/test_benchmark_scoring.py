"""The scoring benchmark on a tiny model: its figures are those that can be known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import benchmark
from analysis.benchmarks.scoring import Work, comparisons, naive_log_probs
from analysis.benchmarks.shapes import SHAPES, random_tries
from mopd.store import write_parquet
from tests.helpers import make_rollouts
from tests.tiny import plain_log_probs, tiny_model, tiny_tokenizer


def test_the_naive_way_is_plain_transformers() -> None:
    model = tiny_model("llama")
    context, response = np.arange(5, 12, dtype=np.int32), np.arange(20, 24, dtype=np.int32)
    want = plain_log_probs(model, context, response)
    np.testing.assert_allclose(naive_log_probs(model, context, response), want, atol=1e-5)


def test_the_figures_of_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    tiny_model("llama", max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_parquet(make_rollouts({"a": "ssff", "b": "sssfff"}), tmp_path / "r.parquet")
    arguments = f"scoring --model {folder} --rollouts {tmp_path / 'r.parquet'} --limit 2 --repeats 1 --scale 1 2"
    benchmark.main([*arguments.split(), "--conditions", "question_only", "1s", "1s1f"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["groups"] == 2
    assert figures["tokens_forwarded"] == figures["tokens_bound"] < figures["tokens_alone"]
    assert figures["max_abs_diff_nats"] < 1e-4
    assert figures["speedup_vs_naive"] == pytest.approx(figures["seconds"]["naive"] / figures["seconds"]["ours"])
    assert 0 < figures["gemm_fraction"] < 1
    assert figures["peak_bytes"] > 0
    one, two = figures["scale"]["groups"]
    assert one["tokens_bound"] < two["tokens_bound"] == figures["tokens_bound"]
    assert [entry["n"] for entry in figures["scale"]["conditions"]] == [1, 2]


def test_random_groups_are_laid_out_as_asked() -> None:
    shape = SHAPES["tiny"]
    (trie,) = random_tries(shape, ["question_only", "1s"], 1)
    # 8 responses after the bare prompt, which question_only repeats but for its closing words, and after a success
    assert len(trie.pairs) == 3 * 8
    bare = trie.pairs[0][0]
    assert shape.prompt[0] <= len(bare) <= shape.prompt[1]
    for context, response in trie.pairs:
        np.testing.assert_array_equal(context[: len(bare)], bare)
        assert shape.response[0] <= len(response) <= shape.response[1]
    shown = trie.pairs[16][0]  # to the first rollout: the third, which is the next right one
    np.testing.assert_array_equal(shown[len(bare) + 8 : -4], trie.pairs[2][1])


def test_a_shape_in_half_precision_is_compared_with_float32(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "scoring --shape tiny --dtype bfloat16 --limit 1 --repeats 1 --peak-tflops 1e-3 --conditions a b c"
    benchmark.main(arguments.split())
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert figures["model"] == "tiny"
    assert figures["rows"] == 4 * 8  # the bare prompt and three conditions
    ours, naive = figures["from_fp32"]["ours"], figures["from_fp32"]["naive"]
    assert 0 < ours["mean_abs"] <= ours["max_abs"] < 0.1
    assert naive["max_abs"] <= figures["max_abs_diff_nats"] + ours["max_abs"]  # triangle inequality
    assert figures["mfu"] > 0
    assert "bfloat16 on cpu" in out


def test_the_table_goes_on_where_vllm_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "mopd.engine", raising=False)
    monkeypatch.delitem(sys.modules, "mopd.teachers.vllm", raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    folder = tmp_path / "model"
    tiny_model("llama", max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_parquet(make_rollouts({"a": "ssff"}), tmp_path / "r.parquet")
    arguments = f"scoring --model {folder} --rollouts {tmp_path / 'r.parquet'} --limit 1 --repeats 1"
    benchmark.main([*arguments.split(), "--conditions", "question_only", "--against", "vllm", "vllm-cached"])
    said = capsys.readouterr()
    assert "vLLM cannot be imported here" in said.err
    assert "so vllm, vllm-cached is left out; run `make setup-vllm`" in said.err
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["speedup_vs_vllm"] is figures["speedup_vs_vllm_cached"] is figures["speedup_vs_naive"] is None
    assert list(figures["seconds"]) == ["ours"]


def test_comparisons_are_with_ours() -> None:
    def work(seconds: float, *log_probs: float) -> Work:
        return Work(body=seconds, head=0.0, planning=0.0, log_probs=np.array(log_probs))

    found = comparisons({"ours": work(2.0, -1.0, -2.0), "vllm": work(7.0, -1.25, -2.125)})
    assert found["speedup_vs_vllm"] == 3.5  # 7 / 2
    assert found["max_abs_diff_vllm_nats"] == 0.25  # of 1/4 and 1/8
    assert found["speedup_vs_naive"] is found["max_abs_diff_nats"] is found["speedup_vs_vllm_cached"] is None
