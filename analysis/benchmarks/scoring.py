"""How fast a group is scored, against the limits of trie and machine and against scoring naively.

``ours`` is the teacher as a study uses it. ``naive`` is how the released scripts score: one sequence after the other
through the model, with logits for every position. ``compiled`` is ours with the layers' MLPs and norms through
``torch.compile``. ``vllm`` is vLLM's ``prompt_logprobs`` as it is, and ``vllm-cached`` the same engine reading its
prefix cache, as mopd's vLLM teacher has it; both need an environment with vLLM. All score the same distinct (context,
response) rows, in turns, after a warm-up. The limits are measured in the same process: the bound on forwarded tokens is
the number of distinct prefixes, and the bound on speed a matrix product in the shape of the model's MLP at the
teacher's token budget.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.benchmarks.shapes import PEAK_TFLOPS, SHAPES, random_teacher, random_tries
from mopd.conditions import CONDITIONS
from mopd.peers import PROTOCOLS
from mopd.rollouts import read_rollouts
from mopd.samples import DEFAULT_SAMPLE, SAMPLES, sample_path
from mopd.study import StudyConfig, group_requests, plan_groups
from mopd.teachers.base import ScoreRequest
from mopd.teachers.plan import Trie, build_trie, readout

if TYPE_CHECKING:
    from mopd.teachers.hf import HFTeacher
    from mopd.teachers.vllm import VLLMTeacher

__all__ = ["add_arguments", "command", "naive_log_probs"]

VLLM_WAYS = ("vllm", "vllm-cached")
WAYS = ("naive", "compiled", *VLLM_WAYS)
IDLE_S = 1.5  # vLLM's worker keeps a core busy for a second after its last step

TWELVE = (*CONDITIONS, "3s", "2f", "3s1f", "1s2f", "2s2f", "3f", "1s3f", "2s3f")[:12]
PLAIN = ("question_only", "1s", "second_s", "1f", "1s1f", "2s", "2s1f", "3s", "2f", "3s1f", "1s2f", "2s2f")
"""Twelve whose contexts differ where peers have no words, but tokens at random."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Seconds of one pass over all groups.

    Attributes:
        body: in the model without its head.
        head: in the head and what is read off it.
        planning: in laying out tries.
        log_probs: [M] of all response tokens, nats.
        tokens: that went through the model, where that is counted.
    """

    body: float
    head: float
    planning: float
    log_probs: np.ndarray
    tokens: int | None = None

    @property
    def seconds(self) -> float:
        return self.body + self.head + self.planning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="preset, hub id or local folder")
    add(
        "--shape", choices=tuple(SHAPES), help="random weights and tokens of this shape, instead of --model, --rollouts"
    )
    add("--rollouts", default=DEFAULT_SAMPLE, help=f"file, folder, or sample: {', '.join(SAMPLES)}")
    add("--conditions", nargs="+", default=list(TWELVE), metavar="NAME", help="also any {k}s{m}f")
    add("--protocol", default="self_exclusion", choices=tuple(PROTOCOLS), help="who may be whose peer")
    add("--limit", type=int, default=4, help="groups with something to compare")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    add("--device", help="torch device (default: the GPU if there is one)")
    add("--token-budget", type=int, help="most tokens in one forward (default: found)")
    add("--against", nargs="*", default=["naive"], choices=WAYS, help="what is measured besides")
    add("--peak-tflops", type=float, help="of the device at this dtype, for the MFU (default: of A100, H100, H200)")
    add(
        "--vllm-compile", action="store_true", help="have vLLM compile the model first (on a CPU it does not by itself)"
    )
    add("--repeats", type=int, default=2, help="turns; the fastest counts")
    add("--scale", nargs="*", type=int, default=[], metavar="N", help="also time N times as many groups and conditions")


def command(options: argparse.Namespace) -> dict[str, Any]:
    """Print the table; the figures."""
    teacher = loaded(options, options.dtype)
    groups, tries = planned(teacher, options, options.conditions, options.limit)
    rows, tokens = sum(len(t.pairs) for t in tries), sum(len(r) for t in tries for _, r in t.pairs)
    print(
        f"{options.shape or options.model}, {options.dtype} on {teacher.device}, way {teacher.mode!r}, "
        f"budget {teacher.token_budget}: {len(tries)} groups, {rows:,} rows, {tokens:,} response tokens, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    figures = against(teacher, groups, tries, options)
    figures |= {"groups": len(tries), "rows": rows, "response_tokens": tokens, "load": os.getloadavg()[0]}
    if options.scale:
        figures["scale"] = scaling(teacher, options)
    return figures


def loaded(options: argparse.Namespace, dtype: str) -> HFTeacher:
    from mopd.teachers.hf import HFTeacher

    settings: Any = {"dtype": dtype, "device": options.device, "token_budget": options.token_budget}
    if options.shape:
        return random_teacher(SHAPES[options.shape], **settings)
    return HFTeacher.load(options.model, **settings)


def planned(
    teacher: HFTeacher, options: argparse.Namespace, conditions: Sequence[str], limit: int
) -> tuple[list[list[ScoreRequest]], list[Trie]]:
    """What a study would ask, group by group, and its tries; of random tokens there are tries alone."""
    if options.shape:
        if set(options.against) & set(VLLM_WAYS):
            raise ValueError("vLLM is measured on a model's folder: leave --shape out, or vllm out of --against")
        return [], random_tries(SHAPES[options.shape], PLAIN[: len(conditions)], limit)
    path = sample_path(options.rollouts) if options.rollouts in SAMPLES else Path(options.rollouts)
    config = StudyConfig(conditions=conditions, protocols=(options.protocol,), limit=limit)
    protocols = {options.protocol: PROTOCOLS[options.protocol]}
    plans, _ = plan_groups(read_rollouts(path), teacher, config, protocols)
    asked = [group_requests(plan) for plan in plans if plan.supported]
    return asked, [build_trie((r.context_ids, r.response_ids) for r in requests) for requests in asked]


def against(
    teacher: HFTeacher, groups: Sequence[Sequence[ScoreRequest]], tries: Sequence[Trie], options: argparse.Namespace
) -> dict[str, Any]:
    """Times in turns, differences and memory."""
    engines = vllm_teachers(options)
    runs: dict[str, Callable[[], Work]] = {"ours": lambda: ours(teacher, tries)}
    if "naive" in options.against:
        runs["naive"] = lambda: naive(teacher, tries)
    for name, engine in engines.items():
        runs[name] = lambda engine=engine: through_vllm(engine, groups, tries)
    if "compiled" in options.against:
        runs["compiled"] = lambda: compiled(teacher, tries)
        compiled(teacher, tries)  # what compiling takes is not what scoring takes
    ours(teacher, tries[:1])  # the warm-up
    naive_log_probs(teacher.model, *tries[0].pairs[0])
    for engine in engines.values():
        through_vllm(engine, groups[:1], tries[:1])
    best: dict[str, Work] = {}
    peak: dict[str, int] = {}
    gemm = 0.0
    for _ in range(options.repeats):
        gemm = max(gemm, gemm_rate(teacher))
        for name, run in runs.items():
            with PeakMemory(teacher, name, peak):
                work = run()
            if name in engines:
                time.sleep(IDLE_S)
            if name not in best or work.seconds < best[name].seconds:
                best[name] = work
    print_ways(best, peak, tries)
    before = teacher.tokens_forwarded
    for trie in tries:
        teacher._score_trie(trie)
    mine = best["ours"]
    figures = {
        "benchmark": "scoring",
        "model": options.shape or options.model,
        "dtype": options.dtype,
        "tokens_forwarded": teacher.tokens_forwarded - before,
        "tokens_bound": sum(t.bound for t in tries),
        "tokens_alone": sum(t.alone for t in tries),
        "gemm_flops": gemm,
        "gemm_fraction": body_flops(teacher, tries) / mine.body / gemm,
        "mfu": mfu(teacher, tries, mine, options.peak_tflops),
        "peak_bytes": peak["ours"],
        "peak_bytes_of": peak,
        "seconds": {name: work.seconds for name, work in best.items()},
        "vllm_tokens_forwarded": {name: best[name].tokens for name in engines},
        **comparisons(best),
    }
    shown = ("tokens_forwarded", "tokens_bound", "gemm_fraction", "mfu", *comparisons(best))
    for name in shown:
        print(f"{name:<30}{figures[name]:>14.6g}" if figures[name] is not None else f"{name:<30}{'-':>14}")
    if options.dtype != "float32":
        figures["from_fp32"] = from_fp32({name: work.log_probs for name, work in best.items()}, tries, options)
    return figures


def from_fp32(
    log_probs: dict[str, np.ndarray], tries: Sequence[Trie], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """How far each is from the naive way in float32, in nats: rounding that a half precision must make anyway."""
    exact = naive(loaded(options, "float32"), tries).log_probs
    found = {}
    for name, values in log_probs.items():
        gap = np.abs(values.astype(np.float64) - exact)
        found[name] = {"max_abs": float(gap.max()), "mean_abs": float(gap.mean())}
        print(
            f"{name:<8} from float32: at most {found[name]['max_abs']:.4g}, {found[name]['mean_abs']:.4g} in the mean"
        )
    return found


def mfu(teacher: HFTeacher, tries: Sequence[Trie], work: Work, peak_tflops: float | None) -> float | None:
    """FLOP/s of body and head over the device's peak; None where no peak is known. Tokens that were saved count
    nothing."""
    import torch

    if peak_tflops is None and teacher.device.type == "cuda":
        name = torch.cuda.get_device_name(teacher.device)
        peak_tflops = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    if peak_tflops is None:
        return None
    config = teacher.model.config.get_text_config()
    reader = teacher._reader
    places = sum(len(np.unique(readout(t, reader.layout(t)).row)) for t in tries) if reader else 0
    head = 2.0 * config.hidden_size * config.vocab_size * places
    return (body_flops(teacher, tries) + head) / work.seconds / (peak_tflops * 1e12)


def comparisons(best: Mapping[str, Work]) -> dict[str, float | None]:
    """Speed and log-probs of ours against each other way; null for what was not measured."""
    found: dict[str, float | None] = {}
    for name in WAYS:
        other = best.get(name)
        key, mine = name.replace("-", "_"), best["ours"]
        found[f"speedup_vs_{key}"] = None if other is None else other.seconds / mine.seconds
        gap = None if other is None else float(np.abs(other.log_probs - mine.log_probs).max())
        found["max_abs_diff_nats" if name == "naive" else f"max_abs_diff_{key}_nats"] = gap
    return found


def print_ways(best: Mapping[str, Work], peak: Mapping[str, int], tries: Sequence[Trie]) -> None:
    rows, tokens = sum(len(t.pairs) for t in tries), sum(len(r) for t in tries for _, r in t.pairs)
    print(f"{'':<12}{'rows/s':>10}{'tokens/s':>12}{'seconds':>10}{'body':>8}{'head':>8}{'peak MiB':>10}")
    for name, work in best.items():
        print(
            f"{name:<12}{rows / work.seconds:>10.2f}{tokens / work.seconds:>12.1f}{work.seconds:>10.2f}"
            f"{work.body:>8.2f}{work.head:>8.2f}{peak[name] / 2**20:>10.0f}"
        )


def vllm_teachers(options: argparse.Namespace) -> dict[str, VLLMTeacher]:
    """The ways through vLLM that are asked for, by one engine; none where vLLM is not installed."""
    wanted = [name for name in VLLM_WAYS if name in options.against]
    if not wanted:
        return {}
    # By itself vLLM leaves a core to its scheduler, which here mostly waits.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    try:
        from mopd.teachers.vllm import VLLMTeacher
    except ImportError as error:
        print(
            f"vLLM cannot be imported here ({error}), so {', '.join(wanted)} is left out; run `make setup-vllm`, then "
            "`.venv-vllm/bin/python -m analysis.benchmark scoring --against naive vllm`",
            file=sys.stderr,
        )
        return {}
    import torch

    threads = torch.get_num_threads()
    settings: dict[str, Any] = {"gpu_memory_utilization": 0.5}  # ours is in the same GPU; a CPU knows no such share
    if options.vllm_compile:
        settings["enforce_eager"] = False
    cached = VLLMTeacher.load(options.model, dtype=options.dtype, **settings)
    torch.set_num_threads(threads)  # vLLM leaves one to the process that starts its workers
    plain = VLLMTeacher(cached.engine, cached.folder, read_cache=False)
    return {name: {"vllm": plain, "vllm-cached": cached}[name] for name in wanted}


def through_vllm(teacher: VLLMTeacher, groups: Sequence[Sequence[ScoreRequest]], tries: Sequence[Trie]) -> Work:
    """Group by group, as a study asks, from an empty prefix cache."""
    teacher.engine.reset_prefix_cache()
    before = teacher.tokens_forwarded
    started = time.perf_counter()
    scores = [teacher.score(requests) for requests in groups]
    seconds = time.perf_counter() - started
    found = [
        of_group[i].logprob
        for of_group, trie in zip(scores, tries, strict=True)
        for i in np.unique(trie.request_of, return_index=True)[1]  # the distinct rows, in the order of ours
    ]
    tokens = teacher.tokens_forwarded - before
    return Work(body=seconds, head=0.0, planning=0.0, log_probs=np.concatenate(found), tokens=tokens)


def ours(teacher: HFTeacher, tries: Sequence[Trie]) -> Work:
    """The teacher's own steps, with a clock between body and head."""
    import torch

    from mopd.teachers.head import Predictions

    body = head = planning = 0.0
    found: list[np.ndarray] = []
    reader = teacher._reader
    if reader is None:
        raise ValueError(f"the model's family can only be scored one sequence at a time (way {teacher.mode!r})")
    with torch.inference_mode():
        for trie in tries:
            clock = Clock(teacher)
            rebuilt = build_trie(trie.pairs)
            predictions = Predictions(teacher.head, readout(rebuilt, reader.layout(rebuilt)))
            planning += clock.lap()
            for first, hidden in reader.read(rebuilt, teacher.token_budget):
                body += clock.lap()
                predictions.take(first, hidden)
                head += clock.lap()
            found.append(predictions.results()["logprob"])
            planning += clock.lap()
    return Work(body=body, head=head, planning=planning, log_probs=np.concatenate(found))


def compiled(teacher: HFTeacher, tries: Sequence[Trie]) -> Work:
    """Ours with compiled MLPs and norms. Attention stays as it is: it writes into the path's buffers."""
    with compiled_layers(teacher):
        return ours(teacher, tries)


@contextmanager
def compiled_layers(teacher: HFTeacher) -> Iterator[None]:
    norms = ("input_layernorm", "post_attention_layernorm")
    parts = [getattr(layer, name) for layer in teacher.model.get_decoder().layers for name in ("mlp", *norms)]
    for part in parts:
        part.compile(dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def naive(teacher: HFTeacher, tries: Sequence[Trie]) -> Work:
    """Every distinct row by itself."""
    clock = Clock(teacher)
    found = [naive_log_probs(teacher.model, *pair) for trie in tries for pair in trie.pairs]
    return Work(body=clock.lap(), head=0.0, planning=0.0, log_probs=np.concatenate(found))


def naive_log_probs(model: Any, context: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Log-probs [T] of a response: one sequence, logits and log-softmax for every position."""
    import torch

    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([context, response]).astype(np.int64))[None].to(device)
    with torch.inference_mode():
        log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        return log_p.gather(-1, ids[0, 1:, None])[len(context) - 1 :, 0].cpu().numpy()


class Clock:
    """Seconds between calls, with the device's work done."""

    def __init__(self, teacher: HFTeacher) -> None:
        self.device = teacher.device
        self.mark = 0.0
        self.lap()

    def lap(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.mark = self.mark, time.perf_counter()
        return self.mark - before


def gemm_rate(teacher: HFTeacher) -> float:
    """FLOP/s of a product in the shape of the MLP at the token budget: the best of many."""
    import torch

    config = teacher.model.config.get_text_config()
    hidden, inner, n = config.hidden_size, config.intermediate_size, teacher.token_budget
    x = torch.randn(n, hidden, device=teacher.device, dtype=teacher.dtype)
    w = torch.randn(inner, hidden, device=teacher.device, dtype=teacher.dtype)
    best = float("inf")
    for _ in range(20):
        clock = Clock(teacher)
        torch.nn.functional.linear(x, w)
        best = min(best, clock.lap())
    return 2 * n * hidden * inner / best


def body_flops(teacher: HFTeacher, tries: Sequence[Trie]) -> float:
    """Of the layers' matrices and of attention along the paths, for the distinct tokens."""
    config = teacher.model.config.get_text_config()
    layers = teacher.model.get_decoder().layers
    matrices = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended = 4 * config.num_attention_heads * size * config.num_hidden_layers
    seen = sum(
        (n * (n + 1) - s * (s + 1)) // 2
        for t in tries
        for n, s in zip(t.lengths.tolist(), t.shared.tolist(), strict=True)
    )
    return 2.0 * matrices * sum(t.bound for t in tries) + float(attended) * seen


class PeakMemory:
    """Largest resident memory (or memory of the GPU) while the block ran, in bytes.

    On a CPU vLLM's is that of its worker alone, with the KV cache that it has set aside.
    """

    def __init__(self, teacher: HFTeacher, name: str, peaks: dict[str, int]) -> None:
        self.cuda, self.name, self.peaks = teacher.device.type == "cuda", name, peaks
        self.processes = children() if name in VLLM_WAYS else ["self"]

    def __enter__(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            for process in self.processes:
                Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew

    def __exit__(self, *_: object) -> None:
        import torch

        if self.cuda:
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = sum(peak_resident(process) for process in self.processes)
        self.peaks[self.name] = max(self.peaks.get(self.name, 0), peak)


def children() -> list[str]:
    """Process ids of the processes that this one has started."""
    return [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def peak_resident(process: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def scaling(teacher: HFTeacher, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds as groups and as conditions grow."""
    found: dict[str, list[dict[str, float]]] = {"groups": [], "conditions": []}
    for what, n, conditions, limit in _scales(options):
        _, tries = planned(teacher, options, conditions, limit)
        seconds = min(ours(teacher, tries).seconds for _ in range(options.repeats))
        found[what].append({"n": n, "seconds": seconds, "tokens_bound": sum(t.bound for t in tries)})
        first, this = found[what][0], found[what][-1]
        times = f"{seconds / first['seconds']:.2f} x the time, {this['tokens_bound'] / first['tokens_bound']:.2f} x"
        print(f"{n:>4} {what:<12}{seconds:>9.2f} s{this['tokens_bound']:>10,.0f} tokens  {times} the tokens")
    return found


def _scales(options: argparse.Namespace) -> Iterator[tuple[str, int, Sequence[str], int]]:
    for factor in options.scale:
        yield "groups", factor, options.conditions, factor
    for factor in options.scale:
        yield "conditions", factor, options.conditions[:factor], 1
