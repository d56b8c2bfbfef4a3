from __future__ import annotations

import threading
import time

import pytest

from mopd.verifiers import mathematics, verify, worker


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{1/2}", "\\frac{1}{2}"),
        ("So the answer is 0.5.", "1/2"),
        ("<answer>42</answer>", "42"),
        ("\\boxed{42}", "$42$"),
        ("\\boxed{42}", "\\boxed{42}"),
        ("\\boxed{1,234}", "1234"),
        ("\\boxed{x^2+1}", "1 + x^2"),
        ("\\boxed{(x+1)^2}", "x^2+2x+1"),
        ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}"),
        ("\\boxed{(1, 2)}", "(1,2)"),
        ("\\boxed{\\{3, 1, 2\\}}", "\\{1,2,3\\}"),
        ("\\boxed{x = 3}", "3"),
        ("3 + 4 = 7", "7"),
        ("The total is **12**", "12"),
        ("42", "42"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{\\text{Even}}", "even"),
        ("\\boxed{yes, always}", "Yes, always"),
        ("$x=5$", "5"),
        ("\\boxed{12 000}", "12000"),
        ("\\boxed{\\frac 1 2}", "0.5"),
        ("\\boxed{x  +  1}", "x+1"),
        ("\\boxed{1  2}", "1 2"),
        ("First $a=1$.\n\nHence $\\frac{3}{4}$.", "0.75"),
    ],
)
def test_equal_values_are_right_however_they_are_written(response: str, gold: str) -> None:
    verdict = mathematics.judge(response, {"answer": gold})
    assert verdict.reward == 1.0, verdict
    assert verdict.answer is not None
    assert verdict.feedback is None


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("\\boxed{3}", "2"),
        ("\\boxed{}", "2"),
        ("I do not know", "2"),
        ("", "2"),
        ("\\boxed{x+1}", "x+2"),
        ("<think>2", "2"),
        ("\\boxed{1 2}", "12"),
        ("\\boxed{1 2}", "2"),
        ("\\boxed{1 2}", "3"),
        ("\\boxed{1 .5}", "1.5"),
        ("\\boxed{12 000}", "0"),
    ],
)
def test_other_values_are_wrong(response: str, gold: str) -> None:
    verdict = mathematics.judge(response, {"answer": gold})
    assert verdict.reward == 0.0
    assert verdict.feedback is not None


def test_a_gold_answer_that_is_prose_leaves_the_response_unjudged() -> None:
    verdict = mathematics.judge("\\boxed{5}", {"answer": "the set of all primes"})
    assert verdict.reward is None
    assert verdict.answer == "5"
    assert verify("math", "5", {"answer": None}).reward is None


def test_a_tower_of_powers_does_not_hang() -> None:
    began = time.monotonic()
    for response in ("\\boxed{9^{9^{9^{9}}}}", "<answer>9**9**9**9</answer>", "\\boxed{(10^{10^{10}})!}"):
        verdict = worker.judge_in_process("math", response, {"answer": "3"}, time_limit_s=3.0)
        assert verdict.reward != 1.0
    assert time.monotonic() - began < 60.0
    assert worker.judge_in_process("math", "\\boxed{3}", {"answer": "3"}, time_limit_s=10.0).reward == 1.0
    worker.close_processes()


def test_a_process_that_hangs_is_killed_and_replaced() -> None:
    process = worker.VerifierProcess()
    assert process.judge("math", "\\boxed{3}", {"answer": "3"}, time_limit_s=10.0).reward == 1.0
    verdict = process.judge("math", "\\boxed{3}", {"answer": "3"}, time_limit_s=0.0)
    assert verdict.reward is None
    assert "Not judged" in str(verdict.feedback)
    assert process.judge("math", "\\boxed{4}", {"answer": "3"}, time_limit_s=10.0).reward == 0.0
    process.close()


def test_it_works_off_the_main_thread() -> None:
    verdicts = []

    def work() -> None:
        verdicts.append(verify("math", "\\boxed{\\frac{6}{4}}", {"answer": "1.5"}))
        worker.close_processes()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [verdict.reward for verdict in verdicts] == [1.0]
