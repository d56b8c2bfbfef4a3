"""TRL's completions files as TRL itself writes them: one step of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mopd.importers import import_rollouts
from tests.tiny import tiny_model, tiny_tokenizer

GIVEN = [0.0, 1.0, 0.0, None]


def reward(completions: list[Any], **_: object) -> list[float | None]:
    assert len(completions) == len(GIVEN)
    return GIVEN


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # they are TRL's
@pytest.mark.parametrize("conversation", [True, False])
def test_a_file_that_a_run_of_trl_wrote(tmp_path: Path, conversation: bool) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    message = [{"role": "user", "content": "What is 2+2?"}]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        log_completions=True,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=tiny_model("llama", vocab_size=260),
        reward_funcs=[reward],
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": message if conversation else "What is 2+2?"}] * 4),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    result = import_rollouts(tmp_path, strict=True, prompt_as="messages" if conversation else "text")
    assert result.report.format == "trl"
    assert result.report.files == ("completions/completions_00001.parquet",)
    assert result.report.group_sizes == {4: 1}
    assert result.frame["reward"].to_list() == GIVEN
    assert result.frame["success"].to_list() == [False, True, False, None]
    assert result.frame["step"].to_list() == [1] * 4
    assert result.frame["prompt"].to_list() == [message if conversation else "What is 2+2?"] * 4
    assert (result.frame["response"].str.len_chars() > 0).all()
