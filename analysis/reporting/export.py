"""Figures and tables of a report as files for papers: png and svg through vl-convert, csv and md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert

from analysis.reporting.figures import Figure

__all__ = ["FORMATS", "export", "markdown_table", "write_text"]

FORMATS = ("png", "svg", "csv", "md")
SCALE = 2.0  # pixels a point, for print


def export(figures: Sequence[Figure], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write each figure in each format; a table without a chart has no picture.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        for name in formats:
            content = _content(figure, name)
            if content is not None:
                path = folder / f"{figure.key}.{name}"
                _write(content, path)
                written.append(path)
    return written


def _content(figure: Figure, name: str) -> bytes | None:
    if name == "csv":
        return figure.table.write_csv().encode("utf-8", "replace")
    if name == "md":
        return f"{figure.caption}\n\n{markdown_table(figure.table)}\n".encode("utf-8", "replace")
    if figure.chart is None:
        return None
    spec = figure.chart.to_dict()
    spec["background"] = "white"
    return _picture(spec, name)


def _picture(spec: dict[str, Any], name: str) -> bytes:
    if name == "png":
        return vl_convert.vegalite_to_png(spec, scale=SCALE)
    return vl_convert.vegalite_to_svg(spec).encode("utf-8")


def markdown_table(table: pl.DataFrame) -> str:
    """A table in GitHub's markdown; undefined is said, floats have four digits."""
    lines = [list(table.columns), ["---"] * table.width]
    lines += [[_markdown_cell(value) for value in row] for row in table.iter_rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:.4f}"
    return " ".join(str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def write_text(text: str, path: Path) -> None:
    """Write a text so that a reader sees the whole of it or the old one."""
    _write(text.encode("utf-8", "replace"), path)


def _write(content: bytes, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
