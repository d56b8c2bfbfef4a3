"""The job of sampling: rows, judging, resuming, refusals; and the samplers against tiny models and a fake server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from analysis import rollouts as door
from mopd.generation import Completion, GenerationError, GenerationJob, Sampling, generate
from mopd.generation.base import complete
from mopd.generation.folder import ModelFolder
from mopd.generation.hf import HFSampler
from mopd.generation.job import settings_of
from mopd.generation.server import ServerError, ServerSampler
from mopd.rollouts import ROLLOUT_SCHEMA, Prompt, groups_of, validate_rollouts
from mopd.tasks import TASKS, TaskItem
from mopd.tokens import ByteCodec, HFCodec, response_ids
from tests.tiny import tiny_model, tiny_tokenizer

END = ByteCodec.END


class Scripted:
    """Answers with a letter that the seed and the place choose; can break off at the n-th call."""

    codec = ByteCodec()
    window: int | None = None
    seeded = True

    def __init__(self, *, model: str = "scripted", break_at: int | None = None, engine: str = "script 1") -> None:
        self.model, self.break_at, self.engine = model, break_at, engine
        self.asked: list[str] = []

    def provenance(self) -> Mapping[str, Any]:
        return {"backend": "script", "model": self.model, "engine": self.engine}

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        if self.break_at is not None and len(self.asked) >= self.break_at:
            raise KeyboardInterrupt
        self.asked += [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
        return [[self._answer(seed + 7 * i + j) for j in range(n)] for i in range(len(prompts))]

    def _answer(self, number: int) -> Completion:
        letter = "ABCD"[number % 4]
        ids = (*self.codec.encode_text(letter), END) if number % 3 else tuple(self.codec.encode_text(letter))
        return Completion(text=letter, ids=ids, finished=bool(number % 3))


def items(n: int = 5) -> list[TaskItem]:
    return [
        TaskItem(
            item_id=f"letters-{i}",
            task="letters",
            prompt=({"role": "user", "content": f"Which letter, number {i}?"},),
            verifier="choice",
            reference={"answer": "A", "options": ["w", "x", "y", "z"]},
            metadata={"source": "made here"},
        )
        for i in range(n)
    ]


def job(path: Path, **changes: Any) -> GenerationJob:
    settings: dict[str, Any] = {
        "items": items(),
        "sampling": Sampling(temperature=0.8, max_tokens=8, seed=3),
        "group_size": 4,
        "output": path / "out.parquet",
        "batch_size": 8,
    }
    return GenerationJob(**settings | changes)


def test_rows_are_a_rollout_table(tmp_path: Path) -> None:
    frame = generate(job(tmp_path), Scripted())
    assert validate_rollouts(frame).equals(frame)
    assert list(frame.columns) == list(ROLLOUT_SCHEMA)
    assert frame.height == 20
    assert frame["group_id"].str.split("@").list.first().unique(maintain_order=True).to_list() == [
        f"letters-{i}" for i in range(5)
    ]
    assert frame["success"].to_list() == [text == "A" for text in frame["response"]]
    assert frame["sampling"].to_list()[0] == {"temperature": 0.8, "top_p": 1.0, "max_tokens": 8, "seed": 3}
    assert frame["policy"].unique().to_list() == ["scripted"]
    assert frame["source"].unique().to_list() == ["made here; sampled by script 1"]
    assert frame["finished"].to_list() == [ids[-1] == END for ids in frame["response_ids"]]
    assert all(response_ids(r, ByteCodec()).exact for g in groups_of(frame) for r in g.rollouts)


def test_output_is_the_file_and_the_parts_are_gone(tmp_path: Path) -> None:
    frame = generate(job(tmp_path), Scripted())
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["out.parquet"]
    assert pl.read_parquet(tmp_path / "out.parquet").equals(frame)
    settings = settings_of(tmp_path / "out.parquet")
    assert settings is not None
    assert (settings["model"], settings["group_size"], settings["seed"]) == ("scripted", 4, 3)


def test_a_second_job_on_the_same_output_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    class Intruding(Scripted):
        def sample(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
            with pytest.raises(GenerationError, match=r"another job is writing .*out\.parquet"):
                generate(job(tmp_path), Scripted())
            return super().sample(*args, **kwargs)

    assert generate(job(tmp_path), Intruding()).height == 20
    assert generate(job(tmp_path), Scripted(break_at=0)).height == 20  # the lock is free again, nothing is missing


@pytest.mark.parametrize("break_at", [0, 2, 4])
def test_broken_run_goes_on_to_the_same_rollouts(tmp_path: Path, break_at: int) -> None:
    whole = generate(job(tmp_path), Scripted())
    (tmp_path / "out.parquet").unlink()
    first = Scripted(break_at=break_at)
    with pytest.raises(KeyboardInterrupt):
        generate(job(tmp_path), first)
    second = Scripted()
    told: list[int] = []
    assert generate(job(tmp_path), second, progress=told.append).equals(whole)
    # Two prompts of four rollouts fill a batch of 8: what was finished is told first and not asked again.
    assert told == [4 * break_at, *[8] * ((4 - break_at) // 2), 4]
    assert not set(first.asked) & set(second.asked)


def test_kill_between_output_and_removal_of_parts_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mopd.generation.job.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            generate(job(tmp_path), Scripted())
    sampler = Scripted()
    assert generate(job(tmp_path), sampler).height == 20
    assert sampler.asked == []


def test_more_prompts_extend_the_file(tmp_path: Path) -> None:
    before = generate(job(tmp_path, items=items(2)), Scripted())
    sampler = Scripted()
    after = generate(job(tmp_path), sampler)
    assert after.head(8).equals(before)
    assert len(sampler.asked) == 3


def test_fewer_prompts_take_nothing_away(tmp_path: Path) -> None:
    generate(job(tmp_path), Scripted())
    assert generate(job(tmp_path, items=items(2)), Scripted()).height == 20


@pytest.mark.parametrize(
    ("changes", "sampler", "message"),
    [
        ({}, Scripted(model="other"), "model 'scripted' there, 'other' now"),
        ({"group_size": 8}, Scripted(), "group_size 4 there, 8 now"),
        ({"sampling": Sampling(temperature=1.0, max_tokens=8, seed=3)}, Scripted(), "temperature 0.8 there, 1.0 now"),
    ],
)
@pytest.mark.parametrize("unfinished", [False, True])
def test_mixing_is_refused(
    tmp_path: Path, changes: dict[str, Any], sampler: Scripted, message: str, unfinished: bool
) -> None:
    if unfinished:
        with pytest.raises(KeyboardInterrupt):
            generate(job(tmp_path), Scripted(break_at=2))
    else:
        generate(job(tmp_path), Scripted())
    with pytest.raises(GenerationError, match=message):
        generate(job(tmp_path, **changes), sampler)


def two_tasks() -> list[TaskItem]:
    return [*items(3), *(replace(item, task="signs") for item in items(2))]


def test_each_task_has_its_own_cap(tmp_path: Path) -> None:
    class Watched(Scripted):
        def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
            calls.append((len(prompts), sampling.max_tokens))
            return super().sample(prompts, n, sampling=sampling, seed=seed)

    calls: list[tuple[int, int]] = []
    frame = generate(job(tmp_path, items=two_tasks(), caps={"letters": 8, "signs": 16}), Watched())
    # Batches of two prompts; the third of letters is not sampled with the first of signs, whose cap is another.
    assert calls == [(2, 8), (1, 8), (2, 16)]
    assert frame["sampling"].struct.field("max_tokens").to_list() == [8] * 12 + [16] * 8
    settings = settings_of(tmp_path / "out.parquet")
    assert settings is not None
    assert settings["max_tokens"] == {"letters": 8, "signs": 16}


@pytest.mark.parametrize("break_at", [2, 3])
def test_broken_run_with_caps_goes_on_to_the_same_rollouts(tmp_path: Path, break_at: int) -> None:
    changes: dict[str, Any] = {"items": two_tasks(), "caps": {"letters": 8, "signs": 16}}
    whole = generate(job(tmp_path, **changes), Scripted())
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(KeyboardInterrupt):
        generate(job(tmp_path, **changes), Scripted(break_at=break_at))
    second = Scripted()
    assert generate(job(tmp_path, **changes), second).equals(whole)
    assert len(second.asked) == 5 - break_at


def test_another_task_with_its_cap_extends_the_file(tmp_path: Path) -> None:
    before = generate(job(tmp_path, items=items(3), caps={"letters": 8}), Scripted())
    with pytest.raises(KeyboardInterrupt):
        generate(job(tmp_path, items=two_tasks()[3:], caps={"signs": 16}), Scripted(break_at=0))
    sampler = Scripted()
    after = generate(job(tmp_path, items=two_tasks(), caps={"letters": 8, "signs": 16}), sampler)
    assert after.head(12).equals(before)
    assert len(sampler.asked) == 2
    # The first task alone goes on too, and takes nothing away from the settings.
    assert generate(job(tmp_path, items=items(3), caps={"letters": 8}), Scripted()).equals(after)
    settings = settings_of(tmp_path / "out.parquet")
    assert settings is not None
    assert settings["max_tokens"] == {"letters": 8, "signs": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caps": {"letters": 9}}, r"max_tokens \{'letters': 8\} there, \{'letters': 9\} now"),
        ({}, r"max_tokens \{'letters': 8\} there, 8 now"),
    ],
)
@pytest.mark.parametrize("unfinished", [False, True])
def test_mixing_caps_is_refused(tmp_path: Path, changes: dict[str, Any], message: str, unfinished: bool) -> None:
    if unfinished:
        with pytest.raises(KeyboardInterrupt):
            generate(job(tmp_path, caps={"letters": 8}), Scripted(break_at=2))
    else:
        generate(job(tmp_path, caps={"letters": 8}), Scripted())
    with pytest.raises(GenerationError, match=message):
        generate(job(tmp_path, **changes), Scripted())


@pytest.mark.parametrize(
    ("caps", "message"), [({"signs": 8}, "no number of tokens for letters"), ({"letters": 0}, "1")]
)
def test_impossible_caps_are_refused(tmp_path: Path, caps: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job(tmp_path, caps=caps)


def test_another_version_of_the_engine_goes_on(tmp_path: Path) -> None:
    generate(job(tmp_path, items=items(2)), Scripted())
    frame = generate(job(tmp_path), Scripted(engine="script 2"))
    assert frame["source"].unique().sort().to_list() == [f"made here; sampled by script {v}" for v in (1, 2)]


def test_foreign_output_is_refused_and_kept(tmp_path: Path) -> None:
    pl.DataFrame({"mine": [1]}).write_parquet(tmp_path / "out.parquet")
    with pytest.raises(GenerationError, match="was not written by generate; give another --output"):
        generate(job(tmp_path), Scripted())
    assert pl.read_parquet(tmp_path / "out.parquet").columns == ["mine"]


def test_prompt_over_the_window_is_refused_before_sampling(tmp_path: Path) -> None:
    sampler = Scripted()
    sampler.window = 30
    with pytest.raises(GenerationError, match=r"prompt 'letters-0' has \d+ tokens.*window of 30; lower --max-tokens"):
        generate(job(tmp_path), sampler)
    assert sampler.asked == []


def test_two_kinds_of_prompts_are_refused(tmp_path: Path) -> None:
    mixed = [*items(1), replace(items(2)[1], prompt="plain text")]
    with pytest.raises(GenerationError, match="sample them apart"):
        generate(job(tmp_path, items=mixed), Scripted())


def test_same_item_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="give each item an id of its own"):
        generate(job(tmp_path, items=[*items(1), *items(1)]), Scripted())


def test_unseeded_sampler_records_no_seed(tmp_path: Path) -> None:
    sampler = Scripted()
    sampler.seeded = False
    assert generate(job(tmp_path), sampler)["sampling"].struct.field("seed").null_count() == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("seed", -1),
    ],
)
def test_impossible_sampling_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("group_size", 1), ("batch_size", 0), ("items", []), ("output", Path("out.jsonl"))]
)
def test_impossible_job_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(GenerationError):
        job(tmp_path, **{field: value})


def test_completion_keeps_the_first_end_token_and_drops_what_follows() -> None:
    codec = HFCodec(tiny_tokenizer())
    hi = tuple(codec.encode_text("hi"))
    assert complete([*hi, 2, 0, 0], frozenset({2}), codec) == Completion(text="hi", ids=(*hi, 2), finished=True)
    assert complete(hi, frozenset({2}), codec) == Completion(text="hi", ids=hi, finished=False)


def test_completion_survives_an_id_beyond_the_vocabulary() -> None:
    codec = HFCodec(tiny_tokenizer())
    hi = tuple(codec.encode_text("hi"))
    assert complete([*hi, 290], frozenset({2}), codec) == Completion(text="hi", ids=(*hi, 290), finished=False)


# --- transformers


def hf_sampler() -> HFSampler:
    return HFSampler(tiny_model("llama", vocab_size=260), tiny_tokenizer(), name="tiny")


def chat(text: str) -> Prompt:
    return ({"role": "user", "content": text},)


def test_hf_gives_exact_ids_and_reasons() -> None:
    sampler = hf_sampler()
    groups = sampler.sample(
        [chat("a"), chat("a longer one")], 32, sampling=Sampling(temperature=2.0, max_tokens=64), seed=5
    )
    assert [len(g) for g in groups] == [32, 32]
    done = [c for g in groups for c in g]
    assert {c.finished for c in done} == {True, False}
    for c in done:
        assert c.finished == (c.ids[-1] == 2)  # <|im_end|>
        assert 2 not in c.ids[:-1]
        assert c.finished or len(c.ids) == 64
        assert c.text == sampler.codec.decode(c.ids, skip_special=True)


def test_hf_repeats_itself_by_seed_and_leaves_the_random_state_alone() -> None:
    sampler = hf_sampler()
    state = torch.random.get_rng_state()
    once, again, other = (
        sampler.sample([chat("a")], 4, sampling=Sampling(max_tokens=8), seed=seed) for seed in (1, 1, 2)
    )
    assert once == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_hf_draws_first_tokens_from_the_distribution_that_was_asked_for(temperature: float, top_p: float) -> None:
    model = tiny_model("llama", vocab_size=260)
    # A model's own settings must not count: with top-k 2, all but two tokens would be missing.
    model.generation_config.top_k, model.generation_config.repetition_penalty = 2, 5.0
    sampler = HFSampler(model, tiny_tokenizer(), name="tiny")
    n = 4000
    # The shorter prompt is padded on the left: the pads must not count either.
    short = sampler.sample(
        [chat("b"), chat("quite a bit longer")],
        n,
        sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=1),
        seed=0,
    )[0]
    ids = torch.tensor([sampler.codec.encode_prompt(chat("b"))])
    with torch.inference_mode():
        p = (model(input_ids=ids).logits[0, -1].double() / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = p.sort(descending=True)
        ranked[ranked.cumsum(-1) - ranked > top_p] = 0.0
        p = torch.zeros_like(p).scatter(0, order, ranked)
        p /= p.sum()
    drawn = torch.bincount(torch.tensor([c.ids[0] for c in short]), minlength=len(p)).double() / n
    # Total variation of n draws from a law over k outcomes is about sqrt(k / (2 pi n)): 0.10 for k = 260, n = 4000.
    assert 0.5 * float((drawn - p).abs().sum()) < 0.13
    assert drawn[p == 0].sum() == 0


def test_hf_without_end_token_is_refused() -> None:
    model, tokenizer = tiny_model("llama", eos_token_id=None), tiny_tokenizer(chat_template=None)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="names no end token"):
        HFSampler(model, tokenizer, name="tiny")


# --- a server


class FakeServer(BaseHTTPRequestHandler):
    """Answers like a vLLM server that always says 'hi' and ends, then 'hi' and is cut."""

    requests: list[dict[str, Any]]
    give_ids = True

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        models = {"data": [{"id": "served-tiny", "root": "/models/tiny", "max_model_len": 512}]}
        self._send(models if self.path == "/v1/models" else {"version": "0.0.1"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        hi = list(tiny_tokenizer()("hi")["input_ids"])
        choices = [
            {"index": 1, "finish_reason": "length", "token_ids": hi},
            {"index": 0, "finish_reason": "stop", "token_ids": [*hi, 2]},
        ]
        if not self.give_ids:
            choices = [{**c, "token_ids": None} for c in choices]
        self._send({"choices": choices})

    def _send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[tuple[str, type[FakeServer]]]:
    handler = type("Handler", (FakeServer,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", handler
        listening.shutdown()
        thread.join()


def tiny_folder(name: str = "tiny", path: str = "/models/tiny") -> ModelFolder:
    return ModelFolder(
        name=name, path=Path(path), codec=HFCodec(tiny_tokenizer()), end_ids=frozenset({2}), weights_hash="0"
    )


def test_server_gets_ids_and_gives_ids(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    sampler = ServerSampler(url + "/v1/", tiny_folder())
    assert (sampler.served, sampler.window, sampler.provenance()["engine"]) == ("served-tiny", 512, "vllm 0.0.1")
    groups = sampler.sample([chat("a"), chat("b")], 2, sampling=Sampling(temperature=0.7, max_tokens=9), seed=1)
    assert [[(c.text, c.finished) for c in g] for g in groups] == [[("hi", True), ("hi", False)]] * 2
    prompts = [r["prompt"] for r in handler.requests]
    assert sorted(prompts) == sorted(sampler.codec.encode_prompt(chat(text)) for text in "ab")
    assert {(r["n"], r["temperature"], r["max_tokens"], r["top_k"]) for r in handler.requests} == {(2, 0.7, 9, 0)}
    assert "seed" not in handler.requests[0]


def test_server_of_another_model_is_refused(server: tuple[str, type[FakeServer]]) -> None:
    with pytest.raises(ServerError, match="serves 'served-tiny', not 'big'"):
        ServerSampler(server[0], tiny_folder("big", "/models/big"))
    assert ServerSampler(server[0], tiny_folder("big", "/models/big"), served="served-tiny").served == "served-tiny"


def test_server_without_token_ids_is_refused(server: tuple[str, type[FakeServer]]) -> None:
    server[1].give_ids = False
    with pytest.raises(ServerError, match="returns no token ids"):
        ServerSampler(server[0], tiny_folder()).sample([chat("a")], 2, sampling=Sampling(), seed=0)


def test_no_server_says_how_to_start_one() -> None:
    with pytest.raises(ServerError, match="start one with `vllm serve"):
        ServerSampler("http://127.0.0.1:9", tiny_folder())
    with pytest.raises(ServerError, match="begins with http"):
        ServerSampler("localhost:8000", tiny_folder())


# --- the door


def test_door_writes_the_file_and_prints_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "load_sampler", lambda _: Scripted())
    output = tmp_path / "rollouts.parquet"
    arguments = ["generate", "--task", "science", "--limit", "3", "--group-size", "8", "--output", str(output)]
    assert door.main(arguments) == 0
    assert f"24 rollouts in {output}" in capsys.readouterr().out
    assert pl.read_parquet(output)["task"].unique().to_list() == ["science"]


def test_door_takes_the_cap_of_each_suite_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "load_sampler", lambda _: Scripted())
    arguments = ["generate", "--task", "arithmetic", "science", "--limit", "2", "--group-size", "2"]
    for more, caps in (([], [64, 64, 128, 128]), (["--max-tokens", "9"], [9] * 4)):
        output = tmp_path / f"{len(more)}.parquet"
        assert door.main([*arguments, *more, "--output", str(output)]) == 0
        found = pl.read_parquet(output)["sampling"].struct.field("max_tokens")
        assert found.gather_every(2).to_list() == caps
    assert door.main([*arguments, "--max-tokens", "0", "--output", str(tmp_path / "none.parquet")]) == 2


def test_every_suite_has_a_cap() -> None:
    caps = {name: suite.max_tokens for name, suite in TASKS.items()}
    embedded = {"arithmetic": 64, "math": 256, "code": 384, "science": 128, "tools": 256}
    assert {name: caps.pop(name) for name in embedded} == embedded
    assert set(caps.values()) == {4096}


def test_door_ends_with_2_on_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["generate", "--task", "alchemy", "--output", str(tmp_path / "r.parquet")]) == 2
    assert "unknown task 'alchemy'" in capsys.readouterr().err


def test_door_drops_a_bad_row_of_a_benchmark_unless_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "load_sampler", lambda _: Scripted())
    source, output = tmp_path / "rows.jsonl", tmp_path / "r.parquet"
    source.write_text('{"question": "What is 1 + 1?", "answer": "It is 2. #### 2"}\nnot json\n')
    arguments = ["generate", "--task", "gsm8k", "--task-source", str(source), "--output", str(output)]
    assert door.main([*arguments, "--strict"]) == 2
    assert "rows.jsonl, row 2: " in capsys.readouterr().err
    assert not output.exists()
    assert door.main(arguments) == 0
    assert output.exists()
