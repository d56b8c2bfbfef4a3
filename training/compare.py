"""Runs side by side: ``python -m training.compare RUN RUN ...``.

The story: read what each run left of its evaluations, check that all were asked the same of the same prompts, and say
how far mean@k and pass@k moved, and how far each run ended from the first one, with intervals over the held-out
prompts (``mopd.inference``: the prompts are what was drawn, the k responses to one are not independent of each other).
The intervals say nothing about another seed of the same method; give several runs of it for that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from mopd.contexts import Templates
from mopd.inference import contrast, interval

__all__ = ["CompareError", "Run", "changes", "curves", "main", "read_run"]

SAME = ("task", "source", "topics", "data_seed", "held_out", "reward", "success_threshold")
PANELS = {
    "mean@k": "held-out mean@k",
    "pass@k": "held-out pass@k",
    "reward": "reward of the step's rollouts",
    "length": "length of a rollout (tokens)",
}
SCALE = 2.0  # pixels a point, for print


class CompareError(ValueError):
    """The runs cannot be compared; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left.

    Attributes:
        name: of its folder.
        config: its settings, resolved.
        wording: of its contexts.
        log: lines of ``metrics.jsonl``.
        evaluations: ``evaluations.parquet`` (``training.evidence.EVALUATIONS``).
    """

    name: str
    config: dict[str, Any]
    wording: Templates
    log: list[dict[str, Any]]
    evaluations: pl.DataFrame

    @property
    def k(self) -> int:
        """Responses to a held-out prompt."""
        return int(self.config["run"]["evaluate_k"])

    @property
    def label(self) -> str:
        """Method and, where it was asked for, condition."""
        condition = self.config["teacher"]["condition"]
        return self.config["method"] + (f" ({condition})" if condition else "")

    @property
    def evaluated(self) -> list[int]:
        """Steps with an evaluation, in order."""
        return sorted(set(self.evaluations["step"]))


def read_run(folder: Path) -> Run:
    """A run's settings, log and evaluations.

    Raises:
        CompareError: the folder holds no run, or one without evaluations.
    """
    files = {name: folder / name for name in ("run.json", "metrics.jsonl", "evaluations.parquet")}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise CompareError(
            f"{folder} has no {', '.join(missing)}: give the output of python -m training.run, finished, with "
            "evaluate_every above 0 and evidence on"
        )
    try:
        note = json.loads(files["run.json"].read_text(encoding="utf-8"))
        config, wording = note["config"], Templates(**note["wording"]) if "wording" in note else None
        log = [json.loads(line) for line in files["metrics.jsonl"].read_text(encoding="utf-8").splitlines()]
        evaluations = pl.read_parquet(files["evaluations.parquet"])
    except (ValueError, TypeError, KeyError, OSError, pl.exceptions.PolarsError) as error:
        raise CompareError(f"{folder} cannot be read: {error}") from error
    if wording is None:
        raise CompareError(f"{folder} was trained by an earlier version, which kept no wording: train it anew")
    if evaluations.is_empty():
        raise CompareError(f"{folder} has no evaluation: train with evaluate_every above 0")
    return Run(name=folder.name, config=config, wording=wording, log=log, evaluations=evaluations)


def leave_out(runs: Sequence[Run], file: Path) -> list[Run]:
    """The runs without the held-out prompts that a CSV names in its column ``item_id``: prompts that had a say in how
    the runs were set up are held out no more.

    Raises:
        CompareError: the file cannot be read, or it names every held-out prompt of a run.
    """
    try:
        named = pl.read_csv(file, columns=["item_id"], schema_overrides={"item_id": pl.String})["item_id"]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CompareError(f"{file} cannot be read ({error}): give a CSV with a column item_id") from error
    left = [replace(run, evaluations=run.evaluations.filter(~pl.col("item_id").is_in(named.to_list()))) for run in runs]
    for run in left:
        if run.evaluations.is_empty():
            raise CompareError(f"{file} names every held-out prompt of {run.name}: nothing is left to compare")
    return left


def by_prompt(run: Run, step: int) -> pl.DataFrame:
    """Of each held-out prompt at a step ``item_id, mean, any`` (NaN unless all k responses were judged) and ``length``
    in tokens, in the order of the prompts' ids."""
    rows = run.evaluations.filter(pl.col("step") == step).group_by("item_id")
    whole = pl.col("success").count() >= run.k
    return rows.agg(
        mean=pl.when(whole).then(pl.col("success").mean()).otherwise(float("nan")),
        any=pl.when(whole).then(pl.col("success").any().cast(pl.Float64)).otherwise(float("nan")),
        length=pl.col("n_tokens").mean(),
    ).sort("item_id")


def repeated(run: Run, step: int) -> float:
    """Share of the responses of an evaluation that hold a heading of the run's contexts."""
    responses = run.evaluations.filter(pl.col("step") == step)["response"]
    return fmean(run.wording.repeated_in(response) for response in responses)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that were not asked the same.

    Raises:
        CompareError: two of a name, other held-out prompts, another k, temperature or limit.
    """

    def asked(run: Run) -> dict[str, Any]:
        rollouts = run.config["rollouts"]
        found = {key: run.config["data"].get(key) for key in SAME}
        found |= {key: rollouts[key] for key in ("temperature", "top_p", "max_response_tokens")}
        return found | {"evaluate_k": run.k}

    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise CompareError(f"two runs have one name: {', '.join(names)}; rename a folder")
    first = asked(runs[0])
    for run in runs[1:]:
        other = asked(run)
        differ = [f"{key} {first[key]!r} and {other[key]!r}" for key in first if first[key] != other[key]]
        if differ:
            raise CompareError(f"{runs[0].name} and {run.name} were evaluated differently: {'; '.join(differ)}")
        if set(run.evaluations["item_id"]) != set(runs[0].evaluations["item_id"]):
            raise CompareError(f"{runs[0].name} and {run.name} have other held-out prompts: give both one data_seed")


def changes(runs: Sequence[Run]) -> pl.DataFrame:
    """A row for each run: how it began, how it ended, and how far from the first run.

    Returns:
        ``run, method, seed, steps, rollouts``; ``mean_first, mean_last, mean_change`` with ``low, high`` (95%, paired
        over held-out prompts) and ``p`` (sign-flip); ``pass_first, pass_last``; ``length_first, length_last`` in
        tokens; ``repeated_first, repeated_last`` (share of responses that hold a heading of the run's contexts);
        ``against_first, against_low, against_high`` (mean@k at the last step less that of the first run);
        ``with_context`` (mean over steps of the share of targets that had one), ``idle_steps``.
    """
    check_comparable(runs)
    reference = by_prompt(runs[0], runs[0].evaluated[-1])
    rows = []
    for run in runs:
        first, last = (by_prompt(run, run.evaluated[i]) for i in (0, -1))
        moved = contrast(last["mean"], first["mean"])
        other = contrast(last["mean"], reference["mean"]) if run is not runs[0] else None
        steps = [line for line in run.log if "grad_norm" in line]
        shares = [line["context/fraction"] for line in steps if "context/fraction" in line]
        rows.append(
            {
                "run": run.name,
                "method": run.label,
                "seed": run.config["run"]["seed"],
                "steps": run.evaluated[-1],
                "rollouts": run.evaluated[-1]
                * run.config["rollouts"]["group_size"]
                * run.config["rollouts"]["prompts_per_step"]
                // run.config["optimizer"]["updates_per_batch"],
                "mean_first": interval(first["mean"]).value,
                "mean_last": interval(last["mean"]).value,
                "mean_change": moved.difference,
                "low": moved.low,
                "high": moved.high,
                "p": moved.p_value,
                "pass_first": interval(first["any"]).value,
                "pass_last": interval(last["any"]).value,
                "length_first": first["length"].mean(),
                "length_last": last["length"].mean(),
                "repeated_first": repeated(run, run.evaluated[0]),
                "repeated_last": repeated(run, run.evaluated[-1]),
                "against_first": other.difference if other else None,
                "against_low": other.low if other else None,
                "against_high": other.high if other else None,
                "with_context": sum(shares) / len(shares) if shares else None,
                "idle_steps": int(steps[-1].get("events/idle_step", 0)) if steps else None,
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def curves(runs: Sequence[Run]) -> pl.DataFrame:
    """``run, method, seed, panel, step, value, low, high``: held-out mean@k (95% over prompts), pass@k, and reward and
    length of the rollouts that were trained on; a step's rollouts stand at the number of updates before them."""
    rows = []
    for run in runs:
        who = {"run": run.name, "method": run.label, "seed": run.config["run"]["seed"]}
        for step in run.evaluated:
            found = by_prompt(run, step)
            for panel, column in (("mean@k", "mean"), ("pass@k", "any")):
                at = interval(found[column])
                rows.append({**who, "panel": panel, "step": step, "value": at.value, "low": at.low, "high": at.high})
        for line in run.log:
            for panel, key in (("reward", "reward/mean"), ("length", "length/mean")):
                if key in line:
                    rows.append({**who, "panel": panel, "step": line["step"] - 1, "value": line[key]})
    schema = {"run": pl.String, "method": pl.String, "seed": pl.Int64, "panel": pl.String, "step": pl.Int64}
    return pl.DataFrame(rows, schema={**schema, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64})


def picture(table: pl.DataFrame, k: int) -> alt.VConcatChart:
    """The curves as four panels, a colour and a dash for each run."""
    names = list(dict.fromkeys(table["run"]))
    last = max(table["step"])
    # Intervals stand beside each other, or those at one step would hide one another
    beside = {name: i * last / 120 for i, name in enumerate(names)}
    shift = pl.when(pl.col("panel") == "mean@k").then(pl.col("run").replace_strict(beside)).otherwise(0.0)
    shifted = table.with_columns(at=pl.col("step") + shift)
    panels = []
    for panel, title in PANELS.items():
        words = title.replace("@k", f"@{k}")
        base = alt.Chart(shifted.filter(pl.col("panel") == panel)).encode(
            x=alt.X("at:Q", title="updates", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False)),
            y=alt.Y("value:Q", title=words),
            color=alt.Color("run:N", scale=alt.Scale(domain=names), title="run"),
            strokeDash=alt.StrokeDash("run:N", scale=alt.Scale(domain=names), title="run"),
        )
        drawn: Any = base.mark_line()
        if panel == "mean@k":
            ends = {"y": alt.Y("low:Q", title=words), "y2": alt.Y2("high:Q")}
            drawn = drawn + base.mark_rule(opacity=0.6).encode(**ends)
        panels.append(drawn.properties(width=330, height=190))
    grid = alt.vconcat(alt.hconcat(*panels[:2]), alt.hconcat(*panels[2:])).configure_view(stroke=None)
    return grid.configure_legend(orient="bottom", symbolType="stroke", symbolSize=400, labelLimit=300, columns=4)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def render(table: pl.DataFrame, k: int) -> str:
    """The table in words, as markdown."""
    head = ["run", "method", "seed", "rollouts", f"mean@{k}", "change [95%]", "p", f"pass@{k}", "tokens", "headings"]
    head += ["context", "idle steps", "less the first run"]
    lines = [head, ["---"] * len(head)]
    for row in table.iter_rows(named=True):
        text = {name: _cell(value) for name, value in row.items()}
        against = f"{text['against_first']} [{text['against_low']}, {text['against_high']}]"
        lines.append(
            [
                *(text[name] for name in ("run", "method", "seed", "rollouts")),
                f"{text['mean_first']} to {text['mean_last']}",
                f"{text['mean_change']} [{text['low']}, {text['high']}]",
                "< 0.001" if row["p"] is not None and row["p"] < 0.001 else text["p"],
                f"{text['pass_first']} to {text['pass_last']}",
                f"{row['length_first']:.0f} to {row['length_last']:.0f}",
                f"{row['repeated_first']:.0%} to {row['repeated_last']:.0%}",
                "" if row["with_context"] is None else f"{row['with_context']:.0%}",
                text["idle_steps"],
                "" if row["against_first"] is None else against,
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(table: pl.DataFrame, drawn: pl.DataFrame, k: int, output: Path) -> list[Path]:
    """Write ``runs.csv``, ``curves.csv`` and ``curves.png``; gives the files."""
    output.mkdir(parents=True, exist_ok=True)
    spec = picture(drawn, k).to_dict() | {"background": "white"}
    contents = {
        "runs.csv": table.write_csv().encode(),
        "curves.csv": drawn.write_csv().encode(),
        "curves.png": vl_convert.vegalite_to_png(spec, scale=SCALE),
    }
    for name, content in contents.items():
        partial = output / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, output / name)
    return [output / name for name in contents]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 is bad input, with the mend on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs; the first is what the others are held against"
    )
    parser.add_argument("--output", type=Path, help="folder for runs.csv, curves.csv and curves.png")
    parser.add_argument(
        "--without", type=Path, metavar="CSV", help="leave out the held-out prompts in its column item_id"
    )
    arguments = parser.parse_args(argv)
    try:
        runs = [read_run(folder) for folder in arguments.runs]
        if arguments.without is not None:
            runs = leave_out(runs, arguments.without)
        table = changes(runs)
        print(render(table, runs[0].k))
        if arguments.output is not None:
            for file in save(table, curves(runs), runs[0].k, arguments.output):
                print(file)
    except (CompareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
