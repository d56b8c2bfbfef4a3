"""The collapse alarm: signs that a run gains by giving something up, or loses what it had.

Signs looked for in the metrics as they are written: pass@k falls while mean@k rises (the model bets on fewer answers),
the diversity of a group's responses falls while the reward rises, the reward falls to half of what it was, responses
grow without end, the limit comes to cut half of them, or they come to repeat the headings of the teacher's context. One
more is no collapse but as idle: groups whose rewards are all equal, step after step, from which a policy gradient
learns nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

__all__ = ["CollapseAlarm"]

FLAT_STEPS = 10
"""Steps of equal rewards that are worth a word."""
HALF = 0.5
"""Of its first value, the reward that is worth a word; of all responses, those that the limit cuts."""
REPEATED = 0.25
"""Of all responses, those with a heading of the context that are worth a word."""


@dataclass(kw_only=True)
class CollapseAlarm:
    """Looks at one line of metrics after the other.

    Attributes:
        window: evaluations between which pass@k and mean@k are compared, and steps that are averaged for diversity
            and length, first window against last.
        drop: relative fall that is too much.
        growth: growth of the mean length that is too much, as a factor; a share of responses that are cut or hold a
            heading is too much only if it was below its limit by this factor.
    """

    window: int = 5
    drop: float = 0.15
    growth: float = 2.0
    _evaluations: deque[tuple[float, float]] = field(init=False)
    _first: list[tuple[float, ...]] = field(init=False, default_factory=list)
    _last: deque[tuple[float, ...]] = field(init=False)
    _flat: int = field(init=False, default=0)
    _raised: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._evaluations = deque(maxlen=self.window)
        self._last = deque(maxlen=self.window)

    def look(self, line: Mapping[str, Any]) -> list[str]:
        """What the line of metrics gives reason to say; each sign is told once until it has passed."""
        signs = {**self._evaluation(line), **self._step(line)}
        new = [text for name, text in signs.items() if text and name not in self._raised]
        self._raised = {name for name in self._raised if signs.get(name, "kept")} | {n for n, t in signs.items() if t}
        return new

    def _evaluation(self, line: Mapping[str, Any]) -> dict[str, str]:
        mean = next((v for key, v in line.items() if key.startswith("eval_mean@")), None)
        passed = next((v for key, v in line.items() if key.startswith("eval_pass@")), None)
        if mean is None or passed is None:
            return {}
        self._evaluations.append((mean, passed))
        (mean_then, pass_then), (mean_now, pass_now) = self._evaluations[0], self._evaluations[-1]
        fell = mean_now > mean_then and pass_now < (1 - self.drop) * pass_then
        return {
            "pass": f"pass@k fell from {pass_then:.3f} to {pass_now:.3f} while mean@k rose from {mean_then:.3f} to "
            f"{mean_now:.3f}: the policy bets on fewer answers"
            if fell
            else ""
        }

    def _step(self, line: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        if (flat := line.get("groups/flat_fraction")) is not None:
            self._flat = self._flat + 1 if flat >= 1 else 0
            found["flat"] = (
                f"the rewards of every group have been equal for {self._flat} steps: there is nothing to learn from; "
                "choose prompts that are solved now and then, or look at the reward"
                if self._flat >= FLAT_STEPS
                else ""
            )
        values = [line.get(key) for key in ("reward/mean", "diversity/unique_ratio", "length/mean")]
        if None in values:
            return found
        values += [line.get(key) for key in ("length/cut_fraction", "context/repeated_fraction")]
        seen = tuple(float(value or 0) for value in values)
        if len(self._first) < self.window:
            self._first.append(seen)
        self._last.append(seen)
        reward, diversity, length, cut, repeated = self._means()
        fell = reward[1] > reward[0] and diversity[1] < (1 - self.drop) * diversity[0]
        found["diversity"] = (
            f"distinct responses of a group fell from {diversity[0]:.3f} to {diversity[1]:.3f} of them while the "
            f"reward rose from {reward[0]:.3f} to {reward[1]:.3f}"
            if fell
            else ""
        )
        found["length"] = (
            f"the mean response grew from {length[0]:.0f} to {length[1]:.0f} tokens"
            if length[1] > self.growth * length[0]
            else ""
        )
        found["reward"] = (
            f"the reward fell from {reward[0]:.3f} to {reward[1]:.3f}" if reward[1] < HALF * reward[0] else ""
        )
        found["cut"] = (
            f"the limit cuts {cut[1]:.0%} of the responses, {cut[0]:.0%} at first"
            if cut[1] > HALF > self.growth * cut[0]
            else ""
        )
        found["repeated"] = (
            f"{repeated[1]:.0%} of the responses hold a heading of the teacher's context, {repeated[0]:.0%} at first: "
            "the student learns how peers are shown, not what they say; try another wording (templates)"
            if repeated[1] > REPEATED > self.growth * repeated[0]
            else ""
        )
        return found

    def _means(self) -> tuple[tuple[float, float], ...]:
        """(then, now) of reward, diversity, length and the shares of responses cut and with a heading."""
        then = [fmean(column) for column in zip(*self._first, strict=True)]
        now = [fmean(column) for column in zip(*self._last, strict=True)]
        return tuple(zip(then, now, strict=True))
