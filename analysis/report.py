"""Write the report of a finished study: one HTML file that opens offline, and files for papers.

examples:
  python -m analysis.report studies/mine
  python -m analysis.report studies/mine --export png svg csv md --output paper
  python -m analysis.report studies/mine --copy small/mine     for the app, with token values rounded
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import Help, add_config, fail, parse
from analysis.reporting.export import FORMATS, export, write_text
from analysis.reporting.finished import FinishedStudy
from analysis.reporting.page import render
from analysis.reporting.sections import sections
from analysis.small_copy import small_copy

__all__ = ["main", "write_report"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description=__doc__, formatter_class=Help, allow_abbrev=False
    )
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--export", nargs="+", default=[], choices=FORMATS, help="also figures and tables as files")
    parser.add_argument("--output", type=Path, help="folder of report.html and exports/ (default: the study's)")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="also a small copy of the study, to ship or send")
    add_config(parser)
    return parser


def write_report(study: str | Path, *, output: str | Path | None = None, formats: Sequence[str] = ()) -> list[Path]:
    """Write ``report.html`` and, for each format, the figures and tables under ``exports/``.

    Args:
        study: folder of a finished study.
        output: where to; by default that folder.
        formats: of ``FORMATS``.

    Returns:
        The files written, the report first.

    Raises:
        StudyError: the folder holds no finished study.
    """
    finished = FinishedStudy.read(study)
    folder = Path(output) if output is not None else finished.path
    folder.mkdir(parents=True, exist_ok=True)
    parts = sections(finished)
    page = folder / "report.html"
    write_text(render(finished, parts), page)
    figures = [figure for part in parts for figure in part.figures]
    return [page, *(export(figures, folder / "exports", formats) if formats else [])]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(build_parser(), argv)
    try:
        written = write_report(args.study, output=args.output, formats=args.export)
        copied = small_copy(args.study, args.copy) if args.copy else 0
    except (ValueError, OSError) as error:  # StudyError is a ValueError
        fail(error)
    print(f"report: {written[0]}")
    if len(written) > 1:
        print(f"exports: {len(written) - 1} files in {written[1].parent}")
    if args.copy:
        print(f"copy: {args.copy}, {copied / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
