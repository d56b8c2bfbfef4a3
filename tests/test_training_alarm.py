"""The collapse alarm on made-up runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from training.alarm import FLAT_STEPS, CollapseAlarm
from training.config import OutputConfig
from training.recorder import Recorder


def evaluation(mean: float, passed: float) -> dict[str, float]:
    return {"eval_mean@8": mean, "eval_pass@8": passed}


def step(reward: float, unique: float, length: float, flat: float = 0.0) -> dict[str, float]:
    return {
        "reward/mean": reward,
        "diversity/unique_ratio": unique,
        "length/mean": length,
        "groups/flat_fraction": flat,
    }


def test_pass_at_k_that_falls_while_mean_rises_is_told_once() -> None:
    alarm = CollapseAlarm(window=3, drop=0.1)
    assert alarm.look(evaluation(0.20, 0.80)) == []
    assert alarm.look(evaluation(0.25, 0.73)) == []  # 0.73 > 0.9 * 0.80 = 0.72
    (told,) = alarm.look(evaluation(0.30, 0.71))
    assert "pass@k fell from 0.800 to 0.710" in told
    assert alarm.look(evaluation(0.35, 0.60)) == []  # told already


def test_a_sign_that_has_passed_is_told_again() -> None:
    alarm = CollapseAlarm(window=2, drop=0.1)
    alarm.look(evaluation(0.2, 0.8))
    assert alarm.look(evaluation(0.3, 0.6))
    assert not alarm.look(evaluation(0.3, 0.8))
    assert alarm.look(evaluation(0.4, 0.5))


def test_pass_at_k_that_falls_with_the_mean_is_no_collapse() -> None:
    alarm = CollapseAlarm(window=2, drop=0.1)
    alarm.look(evaluation(0.3, 0.8))
    assert alarm.look(evaluation(0.2, 0.4)) == []


def test_diversity_and_length_are_compared_by_windows() -> None:
    alarm = CollapseAlarm(window=2, drop=0.2, growth=2.0)
    for line in (step(0.1, 1.0, 10), step(0.1, 0.9, 10)):  # first window: 0.1, 0.95, 10
        assert alarm.look(line) == []
    assert alarm.look(step(0.3, 0.7, 20)) == []  # now 0.2, 0.8 (0.76 is the limit), 15
    signs = alarm.look(step(0.3, 0.7, 40))  # now 0.3, 0.7, 30
    assert len(signs) == 2
    assert "from 0.950 to 0.700" in signs[0]
    assert "grew from 10 to 30 tokens" in signs[1]


def test_a_reward_that_falls_to_half_is_told() -> None:
    alarm = CollapseAlarm(window=2)
    assert [alarm.look(step(r, 1.0, 10)) for r in (0.5, 0.5, 0.3, 0.2)] == [[]] * 4  # at last 0.25, which is half
    assert alarm.look(step(0.2, 1.0, 10)) == ["the reward fell from 0.500 to 0.200"]


def test_a_limit_that_comes_to_cut_half_of_the_responses_is_told() -> None:
    def cut(share: float) -> dict[str, float]:
        return step(0.5, 1.0, 40) | {"length/cut_fraction": share}

    alarm = CollapseAlarm(window=2, growth=2.0)
    assert [alarm.look(cut(share)) for share in (0.1, 0.2, 0.5, 0.5)] == [[]] * 4
    assert alarm.look(cut(0.6)) == ["the limit cuts 55% of the responses, 15% at first"]
    always = CollapseAlarm(window=2, growth=2.0)  # 30% at first: the limit is as it was chosen
    assert [always.look(cut(share)) for share in (0.3, 0.3, 0.9, 0.9)] == [[]] * 4


def test_equal_rewards_for_many_steps_are_told() -> None:
    alarm = CollapseAlarm()
    told = [alarm.look(step(0.0, 1.0, 10, flat=1.0)) for _ in range(FLAT_STEPS + 1)]
    assert told[:-2] == [[]] * (FLAT_STEPS - 1)
    assert f"equal for {FLAT_STEPS} steps" in told[-2][0]
    assert told[-1] == []


def test_lines_without_the_metrics_say_nothing() -> None:
    assert CollapseAlarm().look({"loss": 1.0}) == []


def test_the_alarm_stops_a_run_between_batches_alone(tmp_path: Path) -> None:
    """A checkpoint amid the updates on one batch could not be resumed: the batch is not in it."""
    recorder = Recorder(OutputConfig(output=tmp_path, alarm_stops=True), [])
    args = SimpleNamespace(num_iterations=2)
    stopped = []
    for number in range(1, FLAT_STEPS + 3):
        state = SimpleNamespace(global_step=number, is_world_process_zero=True, max_steps=100)
        control = SimpleNamespace(should_training_stop=False, should_save=False)
        recorder.on_step_end(args, state, control)
        stopped.append((control.should_training_stop, control.should_save))
        recorder.on_log(args, state, control, step(0.0, 1.0, 5.0, flat=1.0))
    # the 10th line raises the alarm, the 11th step is the first update on a batch, the 12th the last
    assert stopped == [(False, False)] * (FLAT_STEPS + 1) + [(True, True)]


def test_responses_that_come_to_hold_headings_are_told_once() -> None:
    alarm = CollapseAlarm(window=2)
    told = [alarm.look({**step(0.1, 0.9, 10), "context/repeated_fraction": share}) for share in (0.0, 0.02, 0.4, 0.5)]
    assert told[:3] == [[], [], []]  # windows of two: 0.01, 0.01, 0.21
    (sign,) = told[3]  # 0.45
    assert sign.startswith("45% of the responses hold a heading of the teacher's context, 1% at first")


def test_responses_that_always_held_headings_are_no_sign() -> None:
    alarm = CollapseAlarm(window=1)
    assert [alarm.look({**step(0.1, 0.9, 10), "context/repeated_fraction": 0.4}) for _ in range(3)] == [[], [], []]
