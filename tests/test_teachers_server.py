"""Scoring through a server: what is sent, what is made of the answers, and what happens when there are none."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis import signal_quality
from mopd.generation.folder import ModelFolder
from mopd.scoring import GroupWork, Shard
from mopd.server import Server, ServerError
from mopd.store import write_parquet
from mopd.teachers.base import ScoreRequest
from mopd.teachers.cache import CachedTeacher
from mopd.teachers.server import ServerTeacher
from mopd.tokens import HFCodec
from tests.helpers import make_group, make_rollouts
from tests.tiny import tiny_model, tiny_tokenizer

GROUP = make_group("s")


class FakeServer(BaseHTTPRequestHandler):
    """Answers like vLLM with a model whose log-prob of token t at place i is -(t + i / 64); it can be made to fail."""

    requests: list[dict[str, Any]]
    failures: list[Any]  # of the next answers: a status, None for a connection that breaks, or a function of the answer
    open_now = most_open = 0
    lock = threading.Lock()
    delay = 0.0
    window: int | None = 64

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        model = {"id": "tiny", "root": "/models/tiny", "max_model_len": self.window}
        self._send({"data": [model]} if self.path == "/v1/models" else {"version": "0.0.1"})

    def do_POST(self) -> None:
        cls = type(self)
        with self.lock:
            cls.open_now += 1
            cls.most_open = max(cls.most_open, cls.open_now)
        time.sleep(self.delay)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            cls.open_now -= 1
            self.requests.append(request)
            failure = self.failures.pop(0) if self.failures else lambda answer: answer
        if failure is None:
            self.close_connection = True  # without a word
        elif isinstance(failure, int):
            self._send({"error": {"message": "no room", "code": failure}}, failure)
        else:
            said = [{str(t): {"logprob": -(t + i / 64), "rank": 1}} for i, t in enumerate(request["prompt"])]
            self._send(failure({"choices": [{"prompt_logprobs": [None, *said[1:]]}]}))

    def _send(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[tuple[str, type[FakeServer]]]:
    handler = type("Handler", (FakeServer,), {"requests": [], "failures": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", handler
        listening.shutdown()
        thread.join()


def teacher_of(url: str, *, workers: int = 4) -> ServerTeacher:
    folder = ModelFolder(
        name="tiny",
        path=Path("/models/tiny"),
        codec=HFCodec(tiny_tokenizer()),
        end_ids=frozenset({2}),
        weights_hash="0",
    )
    return ServerTeacher(Server(url, folder, backoff=0.001), workers=workers)


def request(context: list[int], response: list[int]) -> ScoreRequest:
    return ScoreRequest(
        group=GROUP,
        rollout_id="g-0",
        peers=(),
        context_ids=np.array(context, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
    )


def test_each_distinct_prompt_is_asked_once_by_its_ids(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    teacher = teacher_of(url + "/v1/")
    asked = [request([5, 6], [7, 8]), request([9], [3]), request([5], [6, 7, 8]), request([5, 6], [7, 8])]
    scores = teacher.score(asked)
    # token t at place i: -(t + i / 64), which float32 holds exactly
    want = [[-7 - 2 / 64, -8 - 3 / 64], [-3 - 1 / 64], [-6 - 1 / 64, -7 - 2 / 64, -8 - 3 / 64]]
    assert [s.logprob.tolist() for s in scores] == [*want, want[0]]
    assert {s.logprob.dtype for s in scores} == {np.dtype(np.float32)}
    assert all(s.entropy is None for s in scores)
    assert sorted(r["prompt"] for r in handler.requests) == [[5, 6, 7, 8], [9, 3]]
    assert {(r["model"], r["max_tokens"], r["prompt_logprobs"]) for r in handler.requests} == {("tiny", 1, 0)}
    assert teacher.tokens_forwarded == 6
    assert teacher.score([]) == []


def test_provenance_names_weights_and_engine(server: tuple[str, type[FakeServer]]) -> None:
    provenance = teacher_of(server[0]).provenance()
    assert (provenance["teacher"], provenance["engine"]) == ("vllm-server", "vllm 0.0.1")
    assert (provenance["model"], provenance["weights"], provenance["dtype"]) == ("tiny", "0", None)
    assert (provenance["server"], provenance["root"]) == (server[0], "/models/tiny")


def test_two_servers_may_differ_in_dtype_and_share_no_scores(
    server: tuple[str, type[FakeServer]], tmp_path: Path
) -> None:
    url, handler = server
    with CachedTeacher(teacher_of(url), tmp_path) as teacher:
        teacher.score([request([5], [6])])
    CachedTeacher(teacher_of(url + "/v1/"), tmp_path).score([request([5], [6])])
    assert len(handler.requests) == 1  # the same server
    CachedTeacher(teacher_of(url.replace("127.0.0.1", "localhost")), tmp_path).score([request([5], [6])])
    assert len(handler.requests) == 2


@pytest.mark.parametrize("failures", [[503, 429], [None], [502, None, 504]])
def test_trouble_with_the_connection_is_tried_again(
    server: tuple[str, type[FakeServer]], failures: list[int | None]
) -> None:
    url, handler = server
    handler.failures[:] = failures
    assert teacher_of(url).score([request([5], [6])])[0].logprob.tolist() == [-6 - 1 / 64]
    assert len(handler.requests) == len(failures) + 1


def test_trouble_that_stays_is_told(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    teacher = teacher_of(url)
    handler.failures[:] = [503] * 6
    with pytest.raises(ServerError, match=r"refused /v1/completions \(503\): no room"):
        teacher.score([request([5], [6])])
    assert len(handler.requests) == 6
    handler.failures[:] = [None] * 6
    with pytest.raises(ServerError, match="no answer from a vLLM server at http.*/v1/completions"):
        teacher.score([request([5], [6])])


def test_a_refusal_is_not_tried_again(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    handler.failures[:] = [400]
    with pytest.raises(ServerError, match=r"refused /v1/completions \(400\): no room"):
        teacher_of(url).score([request([5], [6])])
    assert len(handler.requests) == 1


def answer(positions: list[Any] | None) -> Any:
    return lambda _: {"choices": [{"prompt_logprobs": positions}]}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (answer(None), "does not give `prompt_logprobs`"),
        (lambda _: {"choices": []}, "does not give `prompt_logprobs`"),
        (answer([None, {"6": {"logprob": -1.0}}]), "it read 2 of 3 tokens"),
        (answer([None, {"6": {"logprob": -1.0}}, {"8": {"logprob": -1.0}}]), "no log-prob for token 7 at place 2"),
        (answer([None, {"6": {"logprob": -1.0}}, {"7": {"logprob": 3.5}}]), "3.5, which is above 0.*raw_logprobs"),
    ],
)
def test_an_answer_that_is_not_vllms_is_told(server: tuple[str, type[FakeServer]], failure: Any, message: str) -> None:
    url, handler = server
    handler.failures[:] = [failure]
    with pytest.raises(ServerError, match=message):
        teacher_of(url).score([request([5], [6, 7])])


def test_what_json_cannot_hold_is_minus_infinity_again(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    handler.failures[:] = [answer([None, {"6": {"logprob": -9999.0}}])]
    assert teacher_of(url).score([request([5], [6])])[0].logprob.tolist() == [-np.inf]


def test_what_was_asked_and_what_was_forwarded_are_counted_alike(server: tuple[str, type[FakeServer]]) -> None:
    shard = Shard(teacher_of(server[0]))
    keys = (("c", "g-0"),)
    student = dataclasses.replace(request([9], [7, 8]), student=True)
    shard.score(GroupWork(group_id="g", keys=keys, requests=(request([5, 6], [7, 8]), student)))
    _, cost = shard.close()
    # nothing is shared, so nothing is saved: contexts 2 + 1 and responses 2 + 2, whose last tokens a server reads too
    assert (cost["tokens_asked"], cost["tokens_forwarded"]) == (7, 7)


def test_only_so_many_prompts_are_in_flight(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    handler.delay = 0.02
    teacher_of(url, workers=3).score([request([5], [6, i]) for i in range(10)])
    assert 1 < handler.most_open <= 3
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        teacher_of(url, workers=0)


def test_the_window_leaves_room_for_the_token_that_vllm_samples(server: tuple[str, type[FakeServer]]) -> None:
    url, handler = server
    teacher = teacher_of(url)
    assert teacher.window == 63
    assert len(teacher.score([request([5] * 60, [6] * 3)])[0].logprob) == 3
    with pytest.raises(ValueError, match="has 60 context and 4 response tokens, but 'tiny' takes at most 63"):
        teacher.score([request([5] * 60, [6] * 4)])
    assert len(handler.requests) == 1
    handler.window = None
    assert teacher_of(url).window is None


def test_a_study_through_the_door(
    server: tuple[str, type[FakeServer]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = server
    handler.window = 4096
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_parquet(make_rollouts({"a": "ssff", "b": "sssff"}), tmp_path / "r.parquet")
    arguments = ["--rollouts", str(tmp_path / "r.parquet"), "--model", str(tmp_path / "model"), "--vllm-url", url]
    arguments += ["--served-model", "tiny", "--conditions", "question_only", "1s", "--draws", "200"]
    arguments += ["--score-cache", str(tmp_path / "scores")]
    assert signal_quality.main([*arguments, "--output", str(tmp_path / "study")]) == 0
    tokens = pl.read_parquet(tmp_path / "study" / "tokens.parquet")
    assert tokens["entropy"].null_count() == tokens.height > 0
    first = tokens.row(0, named=True)
    # from one place to the next the fake model's log-prob falls by the difference of the tokens and 1/64
    falls = -np.diff(first["token_ids"]) - 1 / 64
    np.testing.assert_allclose(np.diff(first["teacher_logprob"]), falls, atol=1e-4)
    info = json.loads((tmp_path / "study" / "study.json").read_text())
    assert info["teacher"]["teacher"] == "vllm-server"
    assert info["tokens_forwarded"] == sum(len(r["prompt"]) for r in handler.requests)
    rows = pl.read_parquet(tmp_path / "study" / "scores.parquet").height
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "rows scored" in line)
    saved = info["tokens_asked"] - info["tokens_forwarded"]
    assert saved >= 0
    assert re.fullmatch(
        rf"{rows} \(context, target\) rows scored in \d+ s: {info['tokens_forwarded']:,} tokens forwarded, "
        rf"{saved:,} saved, 0 scores from the cache",
        said,
    )
    asked = len(handler.requests)
    assert signal_quality.main([*arguments, "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "study.json").read_text())
    assert again["tokens_asked"] == info["tokens_asked"]
    assert (
        f"0 tokens forwarded, {info['tokens_asked']:,} saved, {again['cache_hits']:,} scores from the cache\n"
        in capsys.readouterr().out
    )
    assert again["cache_hits"] > rows  # the student's own, too
    assert len(handler.requests) == asked  # all from the score cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vllm-url", "http://127.0.0.1:9", "--device", "cpu"], "are for a model that is loaded here"),
        (["--vllm-url", "http://127.0.0.1:9", "--teacher", "oracle"], "follows a script; leave --vllm-url out"),
        (["--teacher", "vllm", "--device", "cpu"], "vLLM finds its devices itself"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        signal_quality.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
