from __future__ import annotations

import subprocess
import sys

import pytest
import reasoning_gym

from mopd.verifiers import gym, verify, verify_many


def chain_sum(answer: str) -> dict[str, object]:
    return {"dataset": "chain_sum", "entry": {"question": "?", "answer": answer, "metadata": {}}}


@pytest.mark.parametrize(
    ("response", "gold", "extracted"),
    [
        ("3 + 4 = 7", "7", "7"),
        ("7", "7", "7"),
        ("The answer is 12.", "12", "12"),
        ("**12**", "12", "12"),
        ("-5", "-5", "-5"),
        ("The answer is -5.", "-5", "-5"),
        ("\u22125", "-5", "-5"),
        ("1,234", "1234", "1234"),
        ("The final answer is $1,234$.", "1234", "1234"),
        ("<answer>7</answer>", "7", "7"),
        ("I guess 9. <answer> 7 </answer> Hope this helps with your 3 questions!", "7", "7"),
        ("<answer>1</answer> wait <answer>7</answer>", "7", "7"),
        ("<answer>7", "7", "7"),
        ("<think>maybe <answer>9</answer></think>\n<answer>7</answer>", "7", "7"),
        ("So \\boxed{7}.", "7", "7"),
        ("<answer>\\boxed{7}</answer>", "7", "7"),
        ("4 + 3 is 7, so:\n\nAnswer: **7**\n\nLet me know about the other 2.", "7", "7"),
        ("Answer:\n7", "7", "7"),
        ("3 + 4 = 7\n\n7 + 5 = 12", "12", "12"),
        ("12 - 3 - 4 = 5", "5", "5"),
        ("The result of 3 + 4 is 7.", "7", "7"),
        ("The answer is 3 + 4 = 7", "7", "7"),
        ("3 + 4 = 7.", "7", "7"),
        ("3 + 4 = **7**", "7", "7"),
        ("The sum is 0.5", "0.5", "0.5"),
        ("#### 18", "18", "18"),
        ("\\[ 3 + 4 = 7 \\]", "7", "7"),
        ("To solve 4 + 3:\n4 + 3 = 7\n\nTherefore, the final answer is:\n\n\\[ 7 \\]", "7", "7"),
    ],
)
def test_free_and_marked_answers_are_found(response: str, gold: str, extracted: str) -> None:
    verdict = gym.judge(response, chain_sum(gold))
    assert (verdict.answer, verdict.reward, verdict.feedback) == (extracted, 1.0, None)


@pytest.mark.parametrize("response", ["", "   ", "I do not know.", "<answer></answer>", "<think>7", "```\n```"])
def test_no_answer_is_a_failure_and_not_unjudged(response: str) -> None:
    verdict = gym.judge(response, chain_sum("7"))
    assert verdict.answer is None
    assert verdict.reward == 0.0
    assert verdict.feedback is not None


@pytest.mark.parametrize("response", ["8", "3 + 4 = 8", "<answer>70</answer>", "7 and <answer>9</answer>"])
def test_a_wrong_answer_fails_without_giving_the_gold_away(response: str) -> None:
    verdict = gym.judge(response, chain_sum("7"))
    assert verdict.reward is not None
    assert verdict.reward < 1.0
    assert verdict.feedback is not None
    assert "'7'" not in verdict.feedback


def test_every_scorer_gives_its_own_gold_full_marks() -> None:
    for name in ["chain_sum", "gcd", "countdown", "number_sorting", "polynomial_multiplication", "n_queens",
                 "simple_integration", "spiral_matrix", "sudoku", "caesar_cipher", "syllogism",
                 "word_sorting"]:  # fmt: skip
        entry = dict(reasoning_gym.create_dataset(name, size=1, seed=3)[0])
        verdict = gym.judge(f"<answer>{entry['answer']}</answer>", {"dataset": name, "entry": entry})
        assert verdict.reward == 1.0, name


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("countdown", "__import__('os').getpid()"),
        ("countdown", "print(5)"),
        ("countdown", "().__class__"),
        ("countdown", "exec(chr(49))"),
        ("spiral_matrix", "[exit(3)]"),
        ("n_queens", "[print('x')]"),
        ("binary_matrix", "exit()"),
    ],
)
def test_an_answer_that_is_code_never_reaches_a_scorer_that_evaluates(
    dataset: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym, "_score", lambda *_: pytest.fail("scored"))
    entry = dict(reasoning_gym.create_dataset(dataset, size=1, seed=3)[0])
    verdict = gym.judge(f"<answer>{answer}</answer>", {"dataset": dataset, "entry": entry})
    assert verdict.reward == 0.0


def test_a_malformed_reference_leaves_the_response_unjudged() -> None:
    verdict = verify("reasoning_gym", "7", {"dataset": "chain_sum"})
    assert verdict.reward is None
    assert "ValueError" in str(verdict.feedback)
    assert verify("reasoning_gym", "7", {"dataset": "no_such", "entry": {"answer": "7"}}).reward is None


def test_many_verdicts_come_in_order() -> None:
    items = [("reasoning_gym", f"{number}", chain_sum(str(number - number % 2))) for number in range(20)]
    seen: list[int] = []
    verdicts = verify_many(items, workers=2, progress=seen.append)
    # Even numbers are their own gold, odd ones are off by one.
    assert [verdict.reward == 1.0 for verdict in verdicts] == [number % 2 == 0 for number in range(20)]
    assert seen == list(range(1, 21))


def test_an_unknown_verifier_lists_the_known() -> None:
    with pytest.raises(ValueError, match="reasoning_gym"):
        verify("nope", "", {})
    with pytest.raises(ValueError, match="nope"):
        verify_many([("nope", "", {})])


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, mopd.verifiers; "
        "print(sorted({'reasoning_gym', 'math_verify', 'sympy', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
