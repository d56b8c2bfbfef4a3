"""What the teacher itself answers when it reads a context: ``python -m analysis.answers STUDY``.

Distillation moves the student towards the teacher that has read the context. The study measures whether the teacher's
log-probabilities of the student's rollouts tell right from wrong; this measures where the student is being led: the
teacher samples answers of its own behind some of the study's contexts, the task's verifier judges them, and each
condition is held against ``question_only``, where the teacher reads what the student does.

The story: pick contexts of the groups that all conditions define, find the items they were made of, sample and judge
(``mopd.generation``; a job that was broken off goes on with the same command), and average per group. Contexts with
successes show right answers, so a high accuracy there is copying or understanding, and this does not say which.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from analysis.cli import Help, add_config, parse
from analysis.rollouts import load_sampler
from mopd import tasks
from mopd.generation import GenerationJob, Sampling, generate
from mopd.inference import contrast, holm, interval
from mopd.models import DEFAULT_PRESET
from mopd.rollouts import content_id, prompt_key, read_rollouts
from mopd.tasks import TaskItem
from mopd.verifiers import VerifierUnavailable

__all__ = ["AnswersError", "accuracy_table", "main", "pick_contexts"]

REFERENCE = "question_only"
DEFAULT_CONDITIONS = (REFERENCE, "shell_only", "1s", "2s", "2s1f", "label_swapped", "other_prompt")


class AnswersError(ValueError):
    """The teacher cannot be asked; the message says why and what to do."""


def pick_contexts(
    contexts: pl.DataFrame,
    assignments: pl.DataFrame,
    *,
    conditions: Sequence[str],
    protocol: str,
    each: int,
    limit: int | None,
    seed: int,
) -> pl.DataFrame:
    """At most ``each`` contexts of every condition, for the groups that define all of them.

    Args:
        contexts: ``contexts.parquet``.
        assignments: ``assignments.parquet``, which says what is supported.
        conditions: to ask under.
        protocol: of the contexts.
        each: contexts of a group under a condition; a condition that has fewer gives all.
        limit: groups; all if None. They are drawn by a hash, the same for each condition.
        seed: of the draws.

    Returns:
        Rows of ``contexts``, groups in the order drawn, conditions in the order given.

    Raises:
        AnswersError: the study does not have a condition, or no group has all of them.
    """
    used = assignments.filter(
        pl.col("protocol") == protocol,
        pl.col("condition").is_in(list(conditions)),
        pl.col("context_id").is_in(contexts["context_id"].to_list()),  # a small copy keeps those that were scored
    )
    missing = [name for name in conditions if name not in set(used["condition"])]
    if missing:
        known = ", ".join(sorted(set(assignments.filter(pl.col("protocol") == protocol)["condition"])))
        raise AnswersError(
            f"the study has no context of {', '.join(missing)} under {protocol}; it has {known or 'none'}"
        )
    have = used.group_by("group_id").agg(n=pl.col("condition").n_unique())
    groups = sorted(have.filter(pl.col("n") == len(conditions))["group_id"], key=lambda g: content_id("group", seed, g))
    if not groups:
        raise AnswersError(f"no group defines all of {', '.join(conditions)}; give fewer --conditions")
    ids = set(used["context_id"])
    rows = contexts.filter(pl.col("context_id").is_in(list(ids)), pl.col("protocol") == protocol)
    places = {key[0]: part for key, part in rows.partition_by("group_id", as_dict=True).items()}
    picked = []
    for group_id in groups[:limit]:
        of_group = places[group_id]
        for name in conditions:
            of_condition = of_group.filter(pl.col("condition") == name).unique("context_id").sort("context_id")
            order = list(range(of_condition.height))
            random.Random(content_id("context", seed, group_id, name)).shuffle(order)
            picked.append(of_condition[order[:each]])
    return pl.concat(picked)


def items_of(
    picked: pl.DataFrame, rollouts: pl.DataFrame, *, seed: int, limit: int | None, source: str | None
) -> list[TaskItem]:
    """An item for each context: its messages as the prompt, the reference of the question that it was made of.

    Args:
        picked: contexts.
        rollouts: of the study.
        seed, limit, source: of the tasks, as the rollouts were sampled.

    Raises:
        AnswersError: a question is not among the task's items, so that nothing could judge an answer.
    """
    firsts = rollouts.unique("group_id", keep="first", maintain_order=True)
    first = {row["group_id"]: (row["task"], row["prompt"]) for row in firsts.iter_rows(named=True)}
    wanted = {first[group_id][0] for group_id in picked["group_id"].unique()}
    unknown = sorted(wanted - set(tasks.TASKS))
    if unknown:
        raise AnswersError(
            f"{', '.join(unknown)} is no task of mopd, so nothing can judge answers; known are {', '.join(tasks.TASKS)}"
        )
    known = {
        (name, prompt_key(item.prompt)): item
        for name in wanted
        for item in tasks.load(name, limit=limit, seed=seed, source=source)
    }
    found: list[TaskItem] = []
    lost: set[str] = set()
    for row in picked.iter_rows(named=True):
        task, prompt = first[row["group_id"]]
        item = known.get((task, prompt_key(_prompt(prompt))))
        if item is None:
            lost.add(row["group_id"])
        else:
            found.append(replace(item, item_id=row["context_id"], prompt=_prompt(row["messages"])))
    if lost:
        raise AnswersError(
            f"{len(lost)} of {picked['group_id'].n_unique()} questions, among them that of {min(lost)}, are not among "
            "the items of their task: give --task-seed, --task-limit and --task-source as the rollouts were sampled"
        )
    return found


def _prompt(value: Any) -> Any:
    return value if isinstance(value, str) else tuple({"role": m["role"], "content": m["content"]} for m in value)


def accuracy_table(picked: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Accuracy by condition, with intervals over groups (95%) and the paired difference from ``question_only``.

    Args:
        picked: the contexts.
        answers: judged rollouts whose ``group_id`` begins with the context's id and ``@``.

    Returns:
        ``condition, accuracy, low, high, difference, difference_low, difference_high, p_holm, tokens, cut, groups``:
        means over groups of the mean over a group's contexts; ``tokens`` per answer and ``cut`` the share that the
        limit cut; the difference null for ``question_only`` itself and where it was not asked; p-values by sign flips,
        Holm-adjusted over the table.
    """
    per_context = answers.with_columns(context_id=pl.col("group_id").str.extract(r"^(.*)@[^@]*$", 1)).group_by(
        "context_id"
    )
    means = per_context.agg(
        accuracy=pl.col("success").mean(),
        tokens=pl.col("response_ids").list.len().mean(),
        cut=(~pl.col("finished")).mean(),
    )
    joined = picked.select("context_id", "condition", "group_id").join(
        means, on="context_id", how="left", validate="1:1", maintain_order="left"
    )
    names = list(dict.fromkeys(joined["condition"]))
    groups = list(dict.fromkeys(joined["group_id"]))
    by_group = joined.group_by("condition", "group_id").agg(pl.col("accuracy", "tokens", "cut").mean())
    value = {(row["condition"], row["group_id"]): row for row in by_group.iter_rows(named=True)}

    def column(name: str) -> np.ndarray:
        return np.array([value[name, g]["accuracy"] for g in groups], dtype=np.float64)  # None becomes NaN

    rows, p_values = [], []
    for name in names:
        at = interval(column(name))
        against = contrast(column(name), column(REFERENCE)) if REFERENCE in names and name != REFERENCE else None
        p_values.append(None if against is None else against.p_value)
        rest = by_group.filter(pl.col("condition") == name)
        rows.append(
            {
                "condition": name,
                "accuracy": at.value,
                "low": at.low,
                "high": at.high,
                "difference": against.difference if against else None,
                "difference_low": against.low if against else None,
                "difference_high": against.high if against else None,
                "tokens": rest["tokens"].mean(),
                "cut": rest["cut"].mean(),
                "groups": at.n_groups,
            }
        )
    adjusted = holm([float("nan") if p is None else p for p in p_values])
    table = pl.DataFrame(rows, infer_schema_length=None)
    return table.insert_column(7, pl.Series("p_holm", adjusted).fill_nan(None))


def render(table: pl.DataFrame) -> str:
    """The table as markdown."""
    lines = ["| condition | accuracy [95%] | less question_only [95%] | p (Holm) | tokens | cut | groups |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in table.iter_rows(named=True):
        against = "" if row["difference"] is None else _with_limits(row, "difference", "difference_")
        p = "" if row["p_holm"] is None else f"{row['p_holm']:.4f}"
        cells = [row["condition"], _with_limits(row, "accuracy", ""), against, p]
        cells += [_or_undefined(row["tokens"], ".1f"), _or_undefined(row["cut"], ".0%"), str(row["groups"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _or_undefined(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)


def _with_limits(row: Mapping[str, Any], name: str, prefix: str) -> str:
    if row[name] is None:
        return "undefined"
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f"{row[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.answers", description=__doc__, formatter_class=Help)
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("--conditions", nargs="+", default=list(DEFAULT_CONDITIONS), help="contexts to ask under")
    parser.add_argument("--protocol", default="leave_pair_out", help="of the contexts")
    parser.add_argument("--contexts", type=int, default=2, help="contexts of a group under a condition, at most")
    parser.add_argument("--samples", type=int, default=4, help="answers behind each context, at least 2")
    parser.add_argument("--limit", type=int, help="groups; all if left out")
    parser.add_argument("--model", default=DEFAULT_PRESET, help="the teacher: preset, hub id or local folder")
    parser.add_argument("--backend", choices=("hf", "vllm"), default="hf", help="what runs the model")
    parser.add_argument("--temperature", type=float, default=0.8, help="above 0")
    parser.add_argument("--top-p", type=float, default=1.0, help="probability mass kept; 1 keeps all")
    parser.add_argument("--max-tokens", type=int, help="most tokens of an answer; each suite's own if left out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling, and of which contexts are drawn")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences sampled at a time")
    parser.add_argument("--task-seed", type=int, default=0, help="seed that drew the suite's prompts")
    parser.add_argument("--task-limit", type=int, help="prompts of each suite, as the rollouts were sampled")
    parser.add_argument("--task-source", metavar="PATH", help="file or hub id of a benchmark, not its own place")
    parser.add_argument("--output", type=Path, default=Path("answers.parquet"), help="file of the answers")
    parser.add_argument("--csv", type=Path, help="the table as a file")
    parser.add_argument("--vllm-url", metavar="URL", help="sample from this running server instead")
    parser.add_argument("--served-model", metavar="NAME", help="the server's name for --model, if it differs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 with hf, bfloat16 with vllm")
    parser.add_argument("--device", help="torch device for --backend hf; a GPU if there is one")
    parser.add_argument(
        "--chat-template-kwargs", type=json.loads, default={}, metavar="JSON", help="for the chat template"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--allow-unsandboxed", action="store_true", help="judge code without bubblewrap")
    add_config(parser)
    return parser


def ask(options: argparse.Namespace) -> pl.DataFrame:
    """Sample what is missing and give the table."""
    tables = {}
    for name in ("contexts", "assignments"):
        file = options.study / f"{name}.parquet"
        if not file.is_file():
            raise AnswersError(f"{options.study} has no {name}.parquet: give the output of analysis.signal_quality")
        tables[name] = pl.read_parquet(file)
    picked = pick_contexts(
        tables["contexts"],
        tables["assignments"],
        conditions=list(dict.fromkeys(options.conditions)),
        protocol=options.protocol,
        each=options.contexts,
        limit=options.limit,
        seed=options.seed,
    )
    items = items_of(
        picked,
        read_rollouts(options.study),
        seed=options.task_seed,
        limit=options.task_limit,
        source=options.task_source,
    )
    caps = {item.task: options.max_tokens or tasks.TASKS[item.task].max_tokens for item in items}
    job = GenerationJob(
        items=items,
        sampling=Sampling(
            temperature=options.temperature, top_p=options.top_p, max_tokens=max(caps.values()), seed=options.seed
        ),
        caps=caps,
        group_size=options.samples,
        output=options.output,
        batch_size=options.batch_size,
        allow_unsandboxed=options.allow_unsandboxed,
    )
    sampler = load_sampler(options)
    with tqdm(total=len(items) * options.samples, unit="answer", desc=str(options.model)) as bar:
        answers = generate(job, sampler, progress=bar.update)
    return accuracy_table(picked, answers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 is bad input, with the mend on stderr."""
    options = parse(_parser(), list(sys.argv[1:] if argv is None else argv))
    try:
        table = ask(options)
        print(render(table))
        if options.csv is not None:
            options.csv.parent.mkdir(parents=True, exist_ok=True)
            table.write_csv(options.csv)
        print(f"answers: {options.output}")
    except (ValueError, OSError, VerifierUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
