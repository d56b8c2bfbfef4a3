"""Studies that are hard to show: empty, unjudged, of one condition, very long, in other scripts, and hostile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mopd.rollouts import validate_rollouts
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher

__all__ = ["HOSTILE", "STUDIES", "hostile_study", "make_study", "rollout_table"]

CONDITIONS = ("question_only", "1s", "2s1f")
RTL = "الجواب هو ٤٢ وليس 24"
EMOJI = "🎉 four 👩‍👩‍👧 نعم 四\n```python\nprint('é')\n```"

_RUN = "window.__broken=1"
HOSTILE = (
    f"<script>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>",
    f"<svg onload={_RUN}>",
    f'"><script>{_RUN}</script>',
    f"'><img src=x onerror={_RUN}>",
    f"</pre><script>{_RUN}</script>",
    f"</textarea><svg/onload={_RUN}>",
    f"<a href=javascript:{_RUN}>x</a>",
    f"[x](javascript:{_RUN})",
    f'![x](x"onerror="{_RUN})',
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'>",
    f"<details open ontoggle={_RUN}>",
    f"<math><mtext></table><mglyph><style><img src=x onerror={_RUN}>",
    f"<body onpageshow={_RUN}>",
    f"<input autofocus onfocus={_RUN}>",
    f"&lt;script&gt;{_RUN}&lt;/script&gt;",
    f"\\u003cscript\\u003e{_RUN}\\u003c/script\\u003e",
    f"${{{_RUN}}} {{{{constructor.constructor('{_RUN}')()}}}}",
    f"$\\href{{javascript:{_RUN}}}{{x}}$ :red[x] :material/home:",
    f"\x00<scr\x00ipt>{_RUN}</script>\u202e<!--",
)
"""Strings that run a script where they are put into a page unescaped; each sets ``window.__broken``."""


def rollout_table(
    labels: Sequence[Sequence[bool | None]], texts: Sequence[str] | None = None, **columns: Any
) -> pl.DataFrame:
    """Groups with these labels; the texts go round, each made its own by its place."""
    rows = []
    for p, group in enumerate(labels):
        for g, label in enumerate(group):
            text = texts[(p * len(group) + g) % len(texts)] + f" [{g}]" if texts else f"answer {g} to {p}"
            rows.append(
                {
                    "group_id": f"g{p:03d}",
                    "rollout_id": f"g{p:03d}-{g}",
                    "task": "synthetic",
                    "prompt": [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": f"question {p}"},
                    ],
                    "response": text,
                    "reward": None if label is None else float(label),
                    "success": label,
                    "finished": g % 3 != 0,
                }
                | columns
            )
    return validate_rollouts(pl.DataFrame(rows))


MIXED = [[True, True, True, False, False, False], [True, False, True, False, True, False]]


def make_study(folder: Path, rollouts: pl.DataFrame, conditions: Sequence[str] = CONDITIONS) -> Path:
    run_study(rollouts, ScriptedTeacher("noise"), StudyConfig(conditions=conditions, draws=200), folder=folder)
    return folder


def _empty(folder: Path) -> Path:
    """A study whose tables have their columns and no row."""
    made = make_study(folder, rollout_table(MIXED))
    for file in made.glob("*.parquet"):
        pl.read_parquet(file).clear().write_parquet(file)
    return made


def _bare(folder: Path) -> Path:
    """Only rollouts, as a training run or a sampling job leaves them."""
    folder.mkdir()
    table = pl.concat(
        [
            rollout_table(MIXED, step=step).with_columns(pl.concat_str("group_id", pl.lit(f"@{step}")))
            for step in (0, 1, 2)
        ]
    )
    table.write_parquet(folder / "rollouts.parquet")
    (folder / "metrics.jsonl").write_text('{"step": 0, "reward": 0.25}\n{"step": 1, "reward": 0.5}\n')
    return folder


def _marked(folder: Path) -> Path:
    """With marks on its tokens."""
    made = make_study(folder, rollout_table(MIXED))
    tokens = pl.read_parquet(made / "tokens.parquet")
    n = tokens["token_ids"].list.len().to_list()
    tokens.select("context_id", "rollout_id").with_columns(
        pl.Series("copied", [[i % 4 == 1 for i in range(k)] for k in n]),
        pl.Series("surprise", [[0.1 * i for i in range(k)] for k in n]),
        pl.Series("in_answer", [None] * len(n), dtype=pl.List(pl.Boolean)),
    ).write_parquet(made / "marks.parquet")
    return made


STUDIES: Mapping[str, Any] = {
    "plain": lambda folder: make_study(folder, rollout_table(MIXED)),
    "empty": _empty,
    "null-labels": lambda folder: make_study(
        folder, rollout_table([[True, True, True, False, False, None], [None, None], [True, None, False, False]])
    ),
    "one-condition": lambda folder: make_study(folder, rollout_table(MIXED), ["question_only"]),
    "long": lambda folder: make_study(folder, rollout_table([[True, False]], ["word " * 4000]), ["question_only"]),
    "scripts": lambda folder: make_study(folder, rollout_table(MIXED, [EMOJI, RTL])),
    "bare": _bare,
    "marked": _marked,
}
"""Makers of studies by name; each takes the folder to make it in."""


def hostile_study(folder: Path) -> Path:
    """A group for each string of ``HOSTILE``, which is its prompt, task, policy, answer and every response."""
    table = rollout_table([[True, True, False, False]] * len(HOSTILE), policy="p", answer="a", feedback="f")
    attack = pl.Series([HOSTILE[i // 4] for i in range(table.height)])
    prompt = pl.Series([[{"role": "user", "content": text}] for text in attack])
    hostile = table.with_columns(
        *(attack.alias(name) for name in ("task", "policy", "answer", "feedback", "source")),
        prompt.alias("prompt"),
        response=pl.concat_str(attack, pl.lit(" "), "response"),
    )
    run_study(hostile, _Named(), StudyConfig(conditions=("question_only", "1s"), draws=200), folder=folder)
    return folder


class _Named(ScriptedTeacher):
    """A teacher whose model has a hostile name."""

    def __init__(self) -> None:
        super().__init__("noise")

    def provenance(self) -> Mapping[str, Any]:
        return {**super().provenance(), "model": " ".join(HOSTILE)}
