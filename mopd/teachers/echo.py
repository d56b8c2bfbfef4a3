"""Scores from an engine that tells the log-probs of a prompt's own tokens.

Context and response go in as one prompt. The engine reads it to its end, the last response token too, and gives the
log-prob of each token after the first. One that reads the beginning of a prompt from its prefix cache knows nothing
of the tokens there, but a neighbour with the same beginning may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.teachers.plan import Trie, build_trie

__all__ = ["check_window", "fill_shared", "first_needed", "log_probs_of", "prompts", "token_scores"]

LogProbs = NDArray[np.float32]
"""[S + T] of a prompt's tokens, nats; NaN where it is not known, as it is for the first."""


def check_window(requests: Iterable[ScoreRequest], window: int | None, name: str) -> None:
    """Refuse what does not fit, before an engine cuts it.

    Raises:
        ValueError: context and response together have more than ``window`` tokens.
    """
    for request in requests:
        context, response = len(request.context_ids), len(request.response_ids)
        if window is not None and context + response > window:
            raise ValueError(
                f"rollout {request.rollout_id} of group {request.group.group_id} has {context} context and {response} "
                f"response tokens, but {name!r} takes at most {window} together; start the engine with a larger "
                "window, or shorten the contexts with --max-context-tokens"
            )


def prompts(requests: Iterable[ScoreRequest]) -> Trie:
    """The trie whose sequences are the distinct prompts, neighbours alike: context and whole response.

    The trie of a scorer leaves the last token of a response out, so that it is given one more than there are.
    """
    return build_trie((r.context_ids, np.append(r.response_ids, np.int32(0))) for r in requests)


def first_needed(trie: Trie) -> NDArray[np.int64]:
    """[N] where in each prompt the first response begins that is asked for."""
    needed = trie.lengths
    np.minimum.at(needed, trie.sequence_of, [len(context) for context, _ in trie.pairs])
    return needed


def log_probs_of(
    ids: NDArray[np.int32], positions: Sequence[Mapping[Any, Any] | None], first: int, get: Callable[[Any, int], float]
) -> LogProbs:
    """What an engine says of a prompt, from token ``first`` on.

    Args:
        ids: [S + T] the prompt.
        positions: what it says of each token, by token id. The last is that of the last token; of a cached beginning
            there may be nothing.
        first: what comes before is not looked at.
        get: the log-prob of a token in the mapping of its position.

    Raises:
        ValueError: it does not speak of these tokens.
    """
    found = np.full(len(ids), np.nan, dtype=np.float32)
    n = len(ids) - first
    if n > len(positions):
        raise ValueError(f"the engine gave {len(positions)} log-probs for the last {n} tokens of a prompt")
    for place, token, said in zip(
        range(first, len(ids)), ids[first:].tolist(), positions[-n:] if n else (), strict=True
    ):
        try:
            found[place] = get(said, token)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the engine gave no log-prob for token {token} at place {place} of a prompt") from error
    return found


def fill_shared(log_probs: Sequence[LogProbs], shared: NDArray[np.int64]) -> None:
    """Where neighbours begin with the same tokens, what is known of one is known of the other.

    Args:
        log_probs: of all prompts of a trie, in its order; filled in place.
        shared: [N] tokens that each has in common with the one before it.
    """
    n = len(log_probs)
    steps = [(i - 1, i, int(shared[i])) for i in range(1, n)]
    for source, target, common in [*steps, *((b, a, c) for a, b, c in reversed(steps))]:
        gaps = np.isnan(log_probs[target][:common])
        log_probs[target][:common][gaps] = log_probs[source][:common][gaps]


def token_scores(trie: Trie, log_probs: Sequence[LogProbs]) -> list[TokenScores]:
    """Scores in the order of the requests. There is no entropy: the engine does not give the distribution."""
    distinct = [
        TokenScores(logprob=log_probs[sequence][len(context) :].copy())
        for (context, _), sequence in zip(trie.pairs, trie.sequence_of.tolist(), strict=True)
    ]
    return [distinct[i] for i in trie.request_of]
