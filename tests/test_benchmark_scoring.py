"""The scoring benchmark on a tiny model: its figures are those that can be known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import benchmark
from analysis.benchmarks.scoring import Work, comparisons, naive_log_probs
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
