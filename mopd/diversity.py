"""How different are the rollouts of a group? Surface, structure and outcome diversity, per group and overall.

Only judged rollouts count; the unjudged are excluded from every figure and counted. Null means undefined (one
response has no pairwise distance), never 0.0.

Distinct-n falls with length and with the number of responses, so it is matched for length: every response of
the group is cut to the same number of words before n-grams are counted (``match_length``, by default the
group's shortest response). It is comparable between groups and policies only at one ``match_length`` and one
group size.

Sources: distinct-n Li et al. 2016 (arXiv 1510.03055); self-BLEU Zhu et al. 2018 (arXiv 1802.01886), computed
by sacrebleu; edit distances by rapidfuzz; pass@k Chen et al. 2021 (arXiv 2107.03374).
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from statistics import fmean

import polars as pl
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics.bleu import BLEU

from mopd.peers import normalise

__all__ = [
    "answer_entropy",
    "ast_distance",
    "distinct_n",
    "edit_distance",
    "group_diversity",
    "mean_at_k",
    "pass_at_k",
    "python_nodes",
    "self_bleu",
    "summarise_diversity",
    "unique_ratio",
    "words_of",
]

WORD = re.compile(r"\w+|[^\w\s]")
FENCE = re.compile(r"^```[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = {"", "py", "python", "python3"}
# prose such as "yes" or "42" parses as Python too; without a fence only text with one of these is code
STATEMENTS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.For,
)
DEFAULT_K = (1, 2, 4, 8)


def words_of(text: str) -> list[str]:
    """Runs of word characters, and every other visible character by itself."""
    return WORD.findall(text)


def distinct_n(responses: Sequence[str], n: int, match_length: int | None = None) -> float | None:
    """Distinct n-grams over all n-grams, pooled over the responses, each cut to the same number of words.

    Args:
        responses: at least two.
        n: words in an n-gram, at least 1.
        match_length: words kept of each response; shorter responses are left out. None: the shortest one's
            words.

    Returns:
        Within (0, 1], higher is more diverse; None if fewer than two responses have ``match_length`` words or
        ``match_length`` is below ``n``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    worded = [words_of(text) for text in responses]
    length = min(map(len, worded), default=0) if match_length is None else match_length
    kept = [words[:length] for words in worded if len(words) >= length]
    if length < n or len(kept) < 2:
        return None
    grams = [tuple(words[i : i + n]) for words in kept for i in range(length - n + 1)]
    return len(set(grams)) / len(grams)


def self_bleu(responses: Sequence[str]) -> float | None:
    """Mean BLEU of each response against all others as references, in [0, 1]; *lower* is more diverse.

    Sentence BLEU-4 with sacrebleu's 13a tokenizer, exponential smoothing and effective order. None with fewer
    than two responses.
    """
    if len(responses) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*responses[:index], *responses[index + 1 :]]).score
        for index, text in enumerate(responses)
    ]
    return min(fmean(scores) / 100, 1.0)


def unique_ratio(responses: Sequence[str]) -> float | None:
    """Distinct texts over responses, in (0, 1]; texts that ``peers.normalise`` makes equal are one. None
    without any.
    """
    return len({normalise(text) for text in responses}) / len(responses) if responses else None


def mean_pairwise(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Mean over pairs of the Levenshtein distance divided by the longer length; two empty ones are at 0."""
    if len(items) < 2:
        return None
    return fmean(Levenshtein.normalized_distance(a, b) for a, b in combinations(items, 2))


def edit_distance(responses: Sequence[str]) -> float | None:
    """Mean pairwise normalised Levenshtein distance in characters, in [0, 1]; None below two responses."""
    return mean_pairwise(responses)


def python_nodes(response: str) -> list[str] | None:
    """Node types of the response's Python code in depth-first order, or None if it has none that parses.

    The code is the last fenced block marked as Python or not marked at all; without a fence the whole
    response, if it parses and holds a statement such as a definition, an import or an assignment.
    """
    fenced = [m["code"] for m in FENCE.finditer(response) if m["language"].lower() in PYTHON]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in foreign code is not our warning
            tree = ast.parse(fenced[-1] if fenced else response)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: list[str] = []
    is_code = bool(fenced)
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        names.append(type(node).__name__)
        is_code = is_code or isinstance(node, STATEMENTS)
        stack.extend(reversed(list(ast.iter_child_nodes(node))))
    return names if is_code and len(names) > 1 else None


def ast_distance(responses: Sequence[str]) -> float | None:
    """Mean pairwise normalised edit distance between sequences of syntax node types, in [0, 1].

    Names and constants do not count, so it is the distance between programs' shapes. Over the responses whose
    Python parses; None if those are fewer than two.
    """
    return mean_pairwise([nodes for text in responses if (nodes := python_nodes(text)) is not None])


def answer_entropy(answers: Iterable[str | None]) -> float | None:
    """Entropy of the distribution of extracted answers, in nats: 0 if all agree, ln(m) if m are equally
    common.

    Missing answers are left out; None if none is there.
    """
    counts = Counter(normalise(answer) for answer in answers if answer is not None)
    total = counts.total()
    if not total:
        return None
    return max(0.0, -sum(c / total * math.log(c / total) for c in counts.values()))


def check_k(n: int, successes: int, k: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be from 0 to n = {n}, got {successes}")
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of judged rollouts n = {n}, got {k}: sample more rollouts")


def pass_at_k(n: int, successes: int, k: int) -> float:
    """Probability that at least one of k rollouts drawn without replacement succeeds: 1 - C(n-c, k) / C(n,
    k).

    Unbiased (Chen et al. 2021, section 2.1). Raises ``ValueError`` for k > n, where no unbiased estimate
    exists.
    """
    check_k(n, successes, k)
    return 1 - math.comb(n - successes, k) / math.comb(n, k)


def mean_at_k(n: int, successes: int, k: int) -> float:
    """Expected success rate of k rollouts drawn without replacement: c / n; refuses k > n."""
    check_k(n, successes, k)
    return successes / n


def group_diversity(
    frame: pl.DataFrame,
    *,
    k: Sequence[int] = DEFAULT_K,
    match_length: int | None = None,
    track: Callable[[Sequence[pl.DataFrame]], Iterable[pl.DataFrame]] = iter,
) -> pl.DataFrame:
    """Diversity of each group of a rollout table.

    Args:
        frame: rollouts in ``ROLLOUT_SCHEMA``.
        k: for the columns ``pass_at_k`` and ``mean_at_k``; null where a group has fewer judged rollouts.
        match_length: words to which responses are cut for distinct-n; see ``distinct_n``.
        track: wraps the groups as they are gone through, for a progress bar (about 0.1 s for 8 long
            responses, nearly all of it self-BLEU).

    Returns:
        A row per group, in order of appearance: ``group_id, task, n_rollouts, n_unjudged, n_success,
        distinct_1, distinct_2, self_bleu, unique_ratio, edit_distance, n_parsed, ast_distance, n_answers,
        answer_entropy`` (nats), ``success_rate`` and ``pass_at_{k}``, ``mean_at_{k}`` for each k.
    """
    ks = sorted(set(k))
    if ks and ks[0] < 1:
        raise ValueError(f"every k must be at least 1, got {ks[0]}")
    groups = frame.partition_by("group_id", maintain_order=True)
    rows = [group_row(group, ks, match_length) for group in track(groups)]
    return pl.DataFrame(rows, schema=group_schema(ks), orient="row")


def group_schema(ks: Sequence[int]) -> dict[str, type[pl.DataType]]:
    schema: dict[str, type[pl.DataType]] = {"group_id": pl.String, "task": pl.String}
    schema |= dict.fromkeys(("n_rollouts", "n_unjudged", "n_success"), pl.Int64)
    schema |= {name: pl.Int64 if name in ("n_parsed", "n_answers") else pl.Float64 for name in METRICS}
    return schema | {f"{name}_at_{k}": pl.Float64 for name in ("pass", "mean") for k in ks}


METRICS: tuple[str, ...] = (
    "distinct_1",
    "distinct_2",
    "self_bleu",
    "unique_ratio",
    "edit_distance",
    "n_parsed",
    "ast_distance",
    "n_answers",
    "answer_entropy",
    "success_rate",
)


def group_row(group: pl.DataFrame, ks: Sequence[int], match_length: int | None) -> dict[str, object]:
    judged = group.filter(pl.col("success").is_not_null())
    responses, answers = judged["response"].to_list(), judged["answer"].to_list()
    nodes = [found for text in responses if (found := python_nodes(text)) is not None]
    n, successes = judged.height, int(judged["success"].sum())
    row: dict[str, object] = {
        "group_id": group["group_id"][0],
        "task": group["task"][0],
        "n_rollouts": group.height,
        "n_unjudged": group.height - n,
        "n_success": successes,
        "distinct_1": distinct_n(responses, 1, match_length),
        "distinct_2": distinct_n(responses, 2, match_length),
        "self_bleu": self_bleu(responses),
        "unique_ratio": unique_ratio(responses),
        "edit_distance": edit_distance(responses),
        "n_parsed": len(nodes),
        "ast_distance": mean_pairwise(nodes),
        "n_answers": sum(a is not None for a in answers),
        "answer_entropy": answer_entropy(answers),
        "success_rate": successes / n if n else None,
    }
    estimators: tuple[tuple[str, Callable[[int, int, int], float]], ...] = (
        ("pass", pass_at_k),
        ("mean", mean_at_k),
    )
    for name, estimate in estimators:
        row |= {f"{name}_at_{k}": estimate(n, successes, k) if k <= n else None for k in ks}
    return row


def summarise_diversity(groups: pl.DataFrame) -> pl.DataFrame:
    """Means over groups of what ``group_diversity`` gives, per task and overall.

    Returns:
        Columns ``task`` (null: all tasks), ``metric``, ``value`` (mean over the groups that define it, null
        if none does), ``n_groups`` (those groups) and ``n_undefined`` (the other groups). Groups weigh alike.
    """
    skipped = {"group_id", "task", "n_rollouts", "n_unjudged", "n_success", "n_parsed", "n_answers"}
    metrics = [name for name in groups.columns if name not in skipped]
    parts: list[tuple[str | None, pl.DataFrame]] = [(None, groups)]
    parts += [(part["task"][0], part) for part in groups.partition_by("task", maintain_order=True) if part["task"][0]]
    rows = [
        {
            "task": task,
            "metric": metric,
            "value": part[metric].mean(),
            "n_groups": part.height - part[metric].null_count(),
            "n_undefined": part[metric].null_count(),
        }
        for task, part in parts
        for metric in metrics
    ]
    schema = {
        "task": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "n_groups": pl.Int64,
        "n_undefined": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
