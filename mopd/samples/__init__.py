"""Small rollout files that ship with the package, so that a study runs with nothing but an embedded model.

``README.md`` beside them says how each was sampled and what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mopd.rollouts import read_rollouts

__all__ = ["DEFAULT_SAMPLE", "SAMPLES", "Sample", "load_sample", "sample_path"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A row of ``SAMPLES``."""

    name: str
    file: str
    description: str


SAMPLES: Mapping[str, Sample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="arithmetic",
            file="arithmetic.parquet",
            description="SmolLM2-135M-Instruct on sums and products of one and two digits",
        ),
        Sample(
            name="domains",
            file="domains.parquet",
            description="Qwen2.5-Coder-0.5B-Instruct on mathematics, code, science questions and tool calls",
        ),
    )
}
"""Every shipped sample by name, in the order in which they are shown."""

DEFAULT_SAMPLE = "arithmetic"


def sample_path(name: str = DEFAULT_SAMPLE) -> Path:
    """Where the sample's parquet file is.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    if name not in SAMPLES:
        raise ValueError(f"unknown sample {name!r}; known samples: {', '.join(SAMPLES)}")
    return Path(__file__).parent / SAMPLES[name].file


def load_sample(name: str = DEFAULT_SAMPLE) -> pl.DataFrame:
    """The sample's rollouts, checked by ``mopd.rollouts.validate_rollouts``."""
    return read_rollouts(sample_path(name))
