"""What is made of an engine's log-probs of a prompt's own tokens, and which of them are taken from a neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.teachers.base import ScoreRequest
from mopd.teachers.echo import check_window, fill_shared, first_needed, log_probs_of, prompts, token_scores
from tests.helpers import make_group

GROUP = make_group("s")
NAN = float("nan")


def request(context: list[int], response: list[int]) -> ScoreRequest:
    return ScoreRequest(
        group=GROUP,
        rollout_id="g-0",
        peers=(),
        context_ids=np.array(context, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
    )


def known(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_prompts_hold_the_whole_response_and_lie_beside_those_alike() -> None:
    asked = [request([5, 6], [7]), request([9], [1, 2]), request([5], [6, 7]), request([5, 6], [8]), request([9], [1])]
    trie = prompts([*asked, asked[0]])
    # [5 6 | 7] and [5 | 6 7] are one prompt; [9 1] is the beginning of [9 1 2] but a prompt of its own
    assert [s.tolist() for s in trie.sequences] == [[5, 6, 7], [5, 6, 8], [9, 1], [9, 1, 2]]
    assert trie.shared.tolist() == [0, 2, 0, 2]
    assert first_needed(trie).tolist() == [1, 2, 1, 1]
    scores = token_scores(trie, [known(NAN, -1, -2), known(NAN, -1, -3), known(NAN, -4), known(NAN, -4, -5)])
    assert [s.logprob.tolist() for s in scores] == [[-2], [-4, -5], [-1, -2], [-3], [-4], [-2]]
    assert all(s.entropy is None for s in scores)


def test_log_probs_are_looked_up_by_token_id_from_the_end() -> None:
    ids = np.array([5, 6, 7, 8], dtype=np.int32)
    said = [{6: -0.5, 1: -0.1}, {3: -0.2, 7: -1.5}, {8: -2.5}]  # of the first token there is nothing

    def read(positions: Sequence[dict[int, float] | None], first: int) -> list[float]:
        return log_probs_of(ids, positions, first, lambda values, token: values[token]).tolist()

    np.testing.assert_equal(read(said, 2), [NAN, NAN, -1.5, -2.5])
    np.testing.assert_equal(read([None, *said], 1), [NAN, -0.5, -1.5, -2.5])
    np.testing.assert_equal(read(said, 4), [NAN] * 4)
    with pytest.raises(ValueError, match="gave 3 log-probs for the last 4 tokens"):
        read(said, 0)
    with pytest.raises(ValueError, match="no log-prob for token 7 at place 2"):
        read([{6: -0.5}, {3: -0.2}, {8: -2.5}], 1)
    with pytest.raises(ValueError, match="no log-prob for token 6 at place 1"):
        read([None, {7: -1.0}, {8: -2.5}], 1)


def test_a_neighbour_fills_what_both_share_and_no_more() -> None:
    log_probs = [known(NAN, -1, -2, -3), known(NAN, NAN, NAN, -4), known(NAN, NAN, NAN, NAN)]
    fill_shared(log_probs, np.array([0, 2, 3]))
    # the second shares two tokens with the first; the third shares three with the second, of which two are known
    np.testing.assert_equal(log_probs[1], known(NAN, -1, NAN, -4))
    np.testing.assert_equal(log_probs[2], known(NAN, -1, NAN, NAN))


def test_a_later_neighbour_fills_an_earlier_one() -> None:
    log_probs = [known(NAN, NAN, NAN), known(NAN, NAN, -2), known(NAN, -1, -3)]
    fill_shared(log_probs, np.array([0, 3, 2]))
    np.testing.assert_equal(log_probs[0], known(NAN, -1, -2))


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=7), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_everything_that_somebody_knows_is_found(sequences: list[list[int]], random: object) -> None:
    trie = prompts(request(ids[:1], ids[1:]) for ids in sequences)
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    value = {tuple(s[: i + 1].tolist()): -rng.random() for s in trie.sequences for i in range(1, len(s))}
    log_probs, anybody = [], set()
    for ids in trie.sequences:
        first = int(rng.integers(1, len(ids) + 1))
        anybody |= {tuple(ids[: i + 1].tolist()) for i in range(first, len(ids))}
        log_probs.append(known(*(NAN if i < first else value[tuple(ids[: i + 1].tolist())] for i in range(len(ids)))))
    fill_shared(log_probs, trie.shared)
    for ids, found in zip(trie.sequences, log_probs, strict=True):
        prefixes = [tuple(ids[: i + 1].tolist()) for i in range(len(ids))]
        np.testing.assert_equal(found, known(*(value[p] if p in anybody else NAN for p in prefixes)))


def test_what_does_not_fit_is_named() -> None:
    fits, too_long = request([1, 2], [3]), request([1, 2], [3, 4])
    check_window([fits, too_long], None, "m")
    check_window([fits], 3, "m")
    with pytest.raises(ValueError, match="rollout g-0 of group g has 2 context and 2 response tokens, but 'm' takes"):
        check_window([fits, too_long], 3, "m")
