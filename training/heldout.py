"""mean@k and pass@k on the held-out prompts."""

# transformers' Trainer declares its model optional, its arguments as those of the base class and a tokenizer's ids as
# anything: what TRL and this module set is not known to a type checker.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from mopd.diversity import mean_at_k, pass_at_k

if TYPE_CHECKING:
    from training.trainer import PeerTrainer

__all__ = ["measure", "summarise"]

SEED = 20_000
"""Added to the run's seed: every evaluation draws the same random numbers, which are not those of training."""

Answered = tuple[int, int, int, float]
"""(place of the prompt, judged responses, successes, mean length in tokens)."""


def measure(trainer: PeerTrainer) -> dict[str, float]:
    """Metrics of ``evaluate_k`` responses to each held-out prompt, the same on every process.

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
    found: list[Answered] = []
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(trainer.args.seed + SEED + rank)
        at_once = max(1, trainer.run.optimizer.micro_batch * trainer.args.gradient_accumulation_steps // k)
        for start in range(0, share, at_once):
            found += _answer(trainer, places[start : start + at_once], k)
    trainer.model.train(was_training)
    by_place = {one[0]: one for one in gather_object(found)}
    return summarise(list(by_place.values()), k)


def _answer(trainer: PeerTrainer, places: Sequence[int], k: int) -> list[Answered]:
    items = [trainer.prompts.held_out[p] for p in places for _ in range(k)]
    prompt_ids = trainer._tokenize_prompts_untruncated([item.prompt for item in items])
    _, completion_ids = trainer._generate(prompt_ids)
    before = trainer.judge.events.copy()
    judged = trainer.judge_all(items, completion_ids)
    trainer.judge.events = before  # those of training alone are counted
    results: list[Answered] = []
    for i, place in enumerate(places):
        part = judged[i * k : (i + 1) * k]
        rewards = [one.verdict.reward for one in part if one.verdict.reward is not None]
        good = sum(reward >= trainer.run.data.success_threshold for reward in rewards)
        results.append((place, len(rewards), good, sum(len(one.completion.ids) for one in part) / k))
    return results


def summarise(found: Sequence[Answered], k: int) -> dict[str, float]:
    """``mean@k`` and ``pass@k``, means over the prompts all of whose k responses were judged (left out if there is
    none), how many those are, the mean length in tokens, and the share of responses that could not be judged."""
    whole = [(n, good) for _, n, good, _ in found if n >= k]
    metrics = {
        "length": sum(length for *_, length in found) / len(found),
        "unjudged_fraction": 1 - sum(n for _, n, _, _ in found) / (k * len(found)),
        "prompts": float(len(whole)),
    }
    if whole:
        metrics[f"mean@{k}"] = sum(mean_at_k(n, good, k) for n, good in whole) / len(whole)
        metrics[f"pass@{k}"] = sum(pass_at_k(n, good, k) for n, good in whole) / len(whole)
    return metrics
