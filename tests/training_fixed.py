"""``training.run`` with responses that the prompt decides, so that runs on one and on two processes can be compared."""

from __future__ import annotations

import random
import sys
from typing import Any

from training import run, trainer


def fixed(self: Any, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    size = self.run.rollouts.group_size if self.model.training else self.run.run.evaluate_k
    found = []
    for place, ids in enumerate(prompt_ids):
        rng = random.Random(str((ids, place % size)))
        letters = [rng.randrange(36, 80) for _ in range(rng.randrange(3, 12))]
        found.append([*letters, *self.eos_token_ids[:1]])
    return prompt_ids, found


if __name__ == "__main__":
    trainer.PeerTrainer._generate = fixed
    sys.exit(run.main(sys.argv[1:]))
