"""How an evaluation looks: tables for people, tab-separated lines for programs, and what is to be said of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmsearch.output import counted, safe, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmsearch.retrieval.evaluate.report import Difference, EvalReport, Outcome, System

_MEASURES = ("success@1", "success@5", "success@10", "mrr", "median_rank")
_HEADS = ("success@1", "success@5", "success@10", "MRR", "median rank", "queries")
_TIME = "ms/query"
_SHOWN = 5
_TIES = 0.0005
"""How far the expected value over the orders of equal scores may be off before it is told."""


def write_report(report: EvalReport, *, people: bool) -> None:
    """The measures of every system, by direction and language, and how systems differ."""
    panels = dict.fromkeys((one.direction, one.language) for system in report.systems for one in system.outcomes)
    if not people:
        write("\t".join(("direction", "language", "system", *_HEADS, _TIME)))
    is_timed = not people or any(system.ms_per_query is not None for system in report.systems)
    for direction, language in panels:
        rows = [
            (safe(system.name), *_cells(outcome), *([_time(system)] if is_timed else []))
            for system in report.systems
            for outcome in system.outcomes
            if (outcome.direction, outcome.language) == (direction, language)
        ]
        if people:
            _write_table((_title(direction, language), *_HEADS, *([_TIME] if is_timed else [])), rows)
        else:
            for row in rows:
                write("\t".join((direction, language or "", *row)))
    if report.differences and people:
        _write_differences(report.differences)
    elif report.differences:
        write("")
        heads = ("direction", "language", "system", "minus", "measure", "difference", "low", "high", "p")
        write("\t".join((*heads, "p_randomisation")))
        for one in report.differences:
            found = (
                one.comparison.delta,
                one.comparison.low,
                one.comparison.high,
                one.comparison.p,
                one.p_randomisation,
            )
            cells = (one.direction, one.language or "", safe(one.system), safe(one.baseline), one.measure)
            write("\t".join((*cells, *(f"{value:.4f}" for value in found))))


def report_lines(report: EvalReport) -> list[str]:
    """What is to be said beside the tables."""
    lines = []
    if report.pictures:
        used = f"{counted(report.captions, 'caption')} of {counted(report.pictures, 'picture')}"
        lines.append(f"{used}; {report.seconds:.1f} s")
    if (sample := report.sample) is not None:
        lines.append(f"a sample: {sample.queries:,} of {sample.of:,} queries, the same ones every time")
    left_out = report.left_out
    if left_out is not None and left_out.missing:
        missing = counted(len(left_out.missing), "picture")
        captions = counted(left_out.missing_captions, "caption")
        lines.append(f"left out: {captions} of {missing} that are not there ({_some(left_out.missing)})")
    if left_out is not None and left_out.empty:
        lines.append(f"left out: {counted(left_out.empty, 'empty caption')}")
    if report.failed:
        lines.append(f"left out: {counted(len(report.failed), 'picture')} that cannot be read:")
        lines += [f"  {safe(failure.path)}: {safe(failure.error)}" for failure in report.failed[:_SHOWN]]
        if len(report.failed) > _SHOWN:
            lines.append(f"  and {len(report.failed) - _SHOWN:,} more (--json lists all)")
    if report.unknown:
        what = "picture" if report.pictures else "document"
        verb = "is" if len(report.unknown) == 1 else "are"
        lines.append(f"{counted(len(report.unknown), what)} {verb} not in the index ({_some(report.unknown)})")
    if report.unanswered:
        lines.append(f"left out: {report.unanswered:,} queries whose answers are not in the index")
    return lines + _ties(report) + [safe(notice) for notice in report.notices]


def _some(names: Sequence[str]) -> str:
    return ", ".join(safe(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _title(direction: str, language: str | None) -> str:
    return direction.replace("_", " ") + (f", {language}" if language else "")


def _cells(outcome: Outcome) -> tuple[str, ...]:
    found = [outcome.measures.get(name) for name in _MEASURES]
    shown = [_number(name, value) for name, value in zip(_MEASURES, found, strict=True)]
    return (*shown, f"{outcome.queries:,}" if outcome.queries >= 10_000 else str(outcome.queries))


def _time(system: System) -> str:
    return "-" if system.ms_per_query is None else f"{system.ms_per_query:.1f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "none"
    return f"{value:g}" if name == "median_rank" else f"{value:.4f}"


def _ties(report: EvalReport) -> list[str]:
    """Where the order of equal scores matters, what the measure is on average over all orders."""
    lines = []
    for system in report.systems:
        for outcome in system.outcomes:
            off = [
                f"{name} {outcome.measures[name]:.4f}, {outcome.expected[name]:.4f} expected"
                for name in _MEASURES
                if name in outcome.expected and abs(outcome.expected[name] - outcome.measures[name]) > _TIES
            ]
            if off:
                where = f"{safe(system.name)}, {_title(outcome.direction, outcome.language)}"
                lines.append(f"{where}: equal scores, in the order of the file; over all their orders {'; '.join(off)}")
    return lines


def _write_differences(differences: Sequence[Difference]) -> None:
    rows = []
    for one in differences:
        found = one.comparison
        rows.append(
            (
                f"{safe(one.system)} minus {safe(one.baseline)}, {_title(one.direction, one.language)}",
                one.measure.replace("mrr", "MRR"),
                f"{found.delta:+.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                _p(found.p),
                _p(one.p_randomisation),
                f"{one.queries}",
            )
        )
    _write_table(("difference", "measure", "value", "95 % interval", "p", "swap p", "queries"), rows)


def _write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
    write("")
