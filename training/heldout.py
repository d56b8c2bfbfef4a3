"""mean@k and pass@k on the held-out prompts."""

# transformers' Trainer declares its model optional, its arguments as those of the base class and a tokenizer's ids as
# anything: what TRL and this module set is not known to a type checker.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from mopd.diversity import mean_at_k, pass_at_k
from training.groups import Judged

if TYPE_CHECKING:
    from training.trainer import PeerTrainer

__all__ = ["measure", "summarise"]

SEED = 20_000
"""Added to the run's seed: every evaluation starts from the same random state, which is not that of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The k responses to a held-out prompt, in the order of sampling, each with its verdict."""

    place: int
    responses: tuple[Judged, ...]


def measure(trainer: PeerTrainer) -> dict[str, float]:
    """Metrics of ``evaluate_k`` responses to each held-out prompt, the same on every process; the evidence takes the
    responses.

    The random state of training is left as it was.
    """
    k, processes, rank = (
        trainer.run.run.evaluate_k,
        trainer.accelerator.num_processes,
        trainer.accelerator.process_index,
    )
    n = len(trainer.prompts.held_out)
    share = -(-n // processes)
    places = [(rank * share + i) % n for i in range(share)]  # some twice, so that all processes work alike
    device = trainer.accelerator.device
    found: list[Answers] = []
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(trainer.args.seed + SEED + rank)
        at_once = max(1, trainer.run.optimizer.micro_batch * trainer.args.gradient_accumulation_steps // k)
        for start in range(0, share, at_once):
            found += _answer(trainer, places[start : start + at_once], k)
    trainer.model.train(was_training)
    by_place = {one.place: one.responses for one in gather_object(found)}
    answers = [by_place[place] for place in sorted(by_place)]
    if trainer.accelerator.is_main_process:
        trainer.evidence.keep_evaluation(trainer.state.global_step, answers)
    return summarise(answers, k, trainer.run.data.success_threshold)


def _answer(trainer: PeerTrainer, places: Sequence[int], k: int) -> list[Answers]:
    items = [trainer.prompts.held_out[p] for p in places for _ in range(k)]
    prompt_ids = trainer._tokenize_prompts_untruncated([item.prompt for item in items])
    _, completion_ids = trainer._generate(prompt_ids)
    before = trainer.judge.events.copy()
    judged = trainer.judge_all(items, completion_ids)
    trainer.judge.events = before  # those of training alone are counted
    return [Answers(place=p, responses=tuple(judged[i * k : (i + 1) * k])) for i, p in enumerate(places)]


def summarise(answers: Sequence[Sequence[Judged]], k: int, threshold: float) -> dict[str, float]:
    """``mean@k`` and ``pass@k``, means over the prompts all of whose k responses were judged (left out if there is
    none), how many those are, the mean length in tokens, and the share of responses that could not be judged."""
    rewards = [[r for one in responses if (r := one.verdict.reward) is not None] for responses in answers]
    whole = [sum(reward >= threshold for reward in part) for part in rewards if len(part) >= k]
    metrics = {
        "length": fmean(len(one.completion.ids) for responses in answers for one in responses),
        "unjudged_fraction": 1 - sum(map(len, rewards)) / (k * len(answers)),
        "prompts": float(len(whole)),
    }
    if whole:
        metrics[f"mean@{k}"] = fmean(mean_at_k(k, good, k) for good in whole)
        metrics[f"pass@{k}"] = fmean(pass_at_k(k, good, k) for good in whole)
    return metrics
