"""verl's ``rollout_data_dir/{step}.jsonl`` (also SDPO and MOPD), and MOPD's ``candidate_responses.jsonl``.

verl writes one object per rollout: ``input`` (the decoded prompt), ``output``, ``gts``, ``score``, ``step``
and whatever the reward function added (``acc``, ``pred``, ``feedback``, …). There is no group id, so a group
is all rows of one step with one prompt (plus ``uid`` where a reward function kept it). Prompts are decoded
without special tokens; see ``markup``. ``score`` is the reward; ``acc`` stands in only where there is no
score.

``candidate_responses.jsonl`` is what the released MOPD scripts make of such dumps. They merge the rollouts of
all steps under one ``prompt_id``, and store a missing score as 0.0; the steps are taken apart again by
``rollout_step``, but a score that was missing can no longer be told from a failure.

Schemas read from: viviable/mopd_code ``verl/trainer/ppo/ray_trainer.py``,
    ``analysis/prepare_rollout_dataset.py``.
"""

from __future__ import annotations

from mopd.importers.base import FileContext, Record, Row
from mopd.importers.prompts import as_prompt
from mopd.importers.values import as_answer, as_optional_text, as_reward, as_step, as_text

__all__ = ["parse_candidate", "parse_verl"]

ACC_NOTE = "reward taken from 'acc', there being no 'score'"
MERGED_NOTE = "the dump stores a missing score as 0.0: unjudged rollouts look like failures"


def parse_verl(record: Record, context: FileContext) -> Row:
    prompt, notes = as_prompt(record.get("input"), "input", context.options.prompt_as)
    name = next((key for key in ("score", "reward", "acc") if record.get(key) is not None), "score")
    reward, reward_notes = as_reward(record.get(name), name)
    return Row(
        prompt=prompt,
        response=as_text(record.get("output"), "output"),
        reward=reward,
        answer=as_answer(record.get("pred")),
        feedback=as_optional_text(record.get("feedback"), "feedback"),
        step=as_step(record.get("step"), context.step),
        task=as_optional_text(record.get("data_source"), "data_source"),
        group=as_optional_text(record.get("uid"), "uid"),
        notes=notes + reward_notes + ((ACC_NOTE,) if name == "acc" else ()),
    )


def parse_candidate(record: Record, context: FileContext) -> Row:
    prompt, notes = as_prompt(record.get("prompt"), "prompt", context.options.prompt_as)
    reward, reward_notes = as_reward(record.get("reward"), "reward")
    return Row(
        prompt=prompt,
        response=as_text(record.get("response_text"), "response_text"),
        reward=reward,
        answer=as_answer(record.get("pred")),
        feedback=as_optional_text(record.get("feedback_text"), "feedback_text"),
        step=as_step(record.get("rollout_step"), context.step),
        notes=(*notes, *reward_notes, *((MERGED_NOTE,) if reward == 0.0 else ())),
    )
