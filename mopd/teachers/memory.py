"""How many tokens go into one forward, and what running out of memory looks like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mopd.teachers.head import HEAD_ROWS

__all__ = ["automatic_budget", "cache_tokens", "free_bytes", "out_of_memory", "release"]

MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
"""More tokens in a forward do not make matrix products faster."""
LEAST_TOKENS = 64
SHARE = 0.5
"""Part of the free memory that is planned with; the rest is for what the estimate does not see."""
CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device: on the CPU no more than a container leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            free = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return max(0, min([free, *_cgroup_room()]))


def _cgroup_room() -> Iterator[int]:
    """Bytes left under the limit of each control group that this process is in, where there is a limit.

    Files in the page cache count as used there; those not in use lately would make room.
    """
    try:
        lines = [line.split(":", 2) for line in CGROUP.read_text().splitlines()]
    except OSError:
        return
    own = {controllers: path.lstrip("/") for _, controllers, path in lines}
    for controllers, root, names in (
        ("", CGROUPS, ("memory.max", "memory.current", "inactive_file")),  # version 2
        ("memory", CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ):
        at = root / own.get(controllers, "")
        for folder in (at, *at.parents):
            if folder.is_relative_to(root) and (room := _room(folder, *names)) is not None:
                yield room


def _room(folder: Path, limit: str, used: str, idle: str) -> int | None:
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int((folder / limit).read_text()) - int((folder / used).read_text()) + int(stat.get(idle, 0))
    except (OSError, ValueError):  # "max" is no limit, and the root of version 2 has no files
        return None


def automatic_budget(model: Any) -> int:
    """Tokens of a forward whose activations fit into the free memory beside the output head's rows."""
    config = model.config.get_text_config()
    weight = next(model.parameters())
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    # At its widest a layer holds the residual, its norm, queries, keys, values and output, or gate, up and product.
    per_token = (8 * hidden + 3 * inner) * weight.element_size()
    head = 3 * HEAD_ROWS * config.vocab_size * 4
    fits = int((SHARE * free_bytes(weight.device) - head) / per_token)
    return max(LEAST_TOKENS, min(fits, MOST_TOKENS.get(weight.device.type, MOST_TOKENS["cpu"])))


def cache_tokens(model: Any) -> int:
    """Tokens whose keys and values in all layers fit into the free memory."""
    config = model.config.get_text_config()
    weight = next(model.parameters())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Twice keys and values: those held, and those being appended to.
    per_token = 2 * 2 * config.num_hidden_layers * heads * size * weight.element_size()
    return max(LEAST_TOKENS, int(SHARE * free_bytes(weight.device) / per_token))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def release() -> None:
    """Give cached blocks back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
