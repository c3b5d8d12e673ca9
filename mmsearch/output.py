"""How the CLI prints: data to stdout, talk to stderr, file names that cannot harm a terminal.

Plain lines where a program reads (tab-separated), the same facts laid out for people on a terminal. rich is
imported for tables and progress only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from mmsearch.indexers.plan import RunEstimate
    from mmsearch.retrieval.encoders.models import ModelStatus
    from mmsearch.retrieval.rerank.models import RerankerStatus
    from mmsearch.retrieval.store.doctor import Diagnosis
    from mmsearch.retrieval.types import (
        DuplicateReport,
        Failure,
        IndexInfo,
        Picture,
        ReindexReport,
        Report,
        TagCount,
        TaggedPicture,
        TagReport,
    )

_FAILURES_SHOWN = 20
# Control characters, halves of surrogate pairs, line and paragraph separators, and the marks that reverse text.
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REVERSING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def say(message: str) -> None:
    """A line for the person, on stderr."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def write(line: str) -> None:
    """A line of data, on stdout."""
    print(line)  # noqa: T201


def write_path0(path: str) -> None:
    """A path as the bytes that it is on disk, ended by a NUL character."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\0")


def write_json(value: Any) -> None:
    """One JSON object on one line; readable where stdout can show it, always valid, and nothing a terminal obeys."""
    shown = plain(value)
    line = json.dumps(shown, ensure_ascii=False, allow_nan=False)
    if not (line.isascii() and line.isprintable()):
        line = "".join(f"\\u{ord(char):04x}" if _is_unsafe(char) else char for char in line)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8" or not _encodable(line):
        line = json.dumps(shown, ensure_ascii=True, allow_nan=False)
    write(line)


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples to what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def safe(text: str) -> str:
    """Text on one line, without anything that a terminal would obey: escapes instead."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in _UNSAFE or char in _REVERSING


def report_lines(report: Report) -> list[str]:
    """A finished run in a few lines for a person."""
    counts = {name: getattr(report, name) for name in ("added", "updated", "moved", "copied", "removed", "unchanged")}
    counts["given tokens"] = report.tokens
    done = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
    done = done or ("nothing to do" if report.items or report.failed else "no pictures or texts found")
    lines = [f"{done}; {counted(report.items, 'item')} in the index; {_duration(report.seconds)}"]
    if report.interrupted:
        lines.append("interrupted; everything above is saved, and the same command continues from here")
    if report.kept:
        lines.append(f"{counted(report.kept, 'file')} that are not there now were kept (--prune lets them go)")
    if report.skipped:
        kinds = sorted(report.skipped.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{safe(kind) or 'no extension'} {count:,}" for kind, count in kinds[:8])
        more = f", {len(kinds) - 8} more kinds" if len(kinds) > 8 else ""
        lines.append(f"skipped {counted(sum(report.skipped.values()), 'file')} of other kinds: {shown}{more}")
    return lines + failure_lines(report.failed)


def estimate_lines(estimate: RunEstimate) -> list[str]:
    """What `--dry-run` says."""
    counts = (
        (estimate.new, "new"),
        (estimate.changed, "changed"),
        (estimate.unchanged, "unchanged"),
        (estimate.missing, "gone"),
        (estimate.failed, "failed before"),
        (estimate.tokens, "without tokens"),
    )
    found = ", ".join(f"{number:,} {name}" for number, name in counts if number) or "no files"
    work = estimate.new + estimate.changed + estimate.tokens
    if not work:
        return [f"{found}; nothing to index"]
    how_long = "unknown until the model is here" if estimate.seconds is None else _duration(estimate.seconds)
    return [f"{found}; to read: {counted(work, 'file')}, {_size(estimate.bytes)}; time: about {how_long}"]


def reindex_lines(report: ReindexReport) -> list[str]:
    """A finished change of model in a few lines for a person."""
    if report.interrupted and not report.switched:
        return ["interrupted; what is done is saved, and the same command continues from here"]
    if report.model == report.previous_model and not report.embedded:
        return [f"the index is of the model {safe(report.model)} already; nothing to do"]
    lines = [
        f"changed from {safe(report.previous_model)} to {safe(report.model)}: "
        f"{counted(report.embedded, 'embedding')} made, {report.reused:,} made before; {_duration(report.seconds)}"
    ]
    if report.dropped:
        lines.append(f"{counted(report.dropped, 'item')} could not be embedded again and left the index")
    if report.interrupted:
        lines.append("interrupted while looking for changed files; `mmsearch index` goes on with that")
    return lines


def write_diagnosis(diagnosis: Diagnosis, *, people: bool, repair: bool) -> None:
    """What `doctor` has found, a line each, with what to do; for people that stands beneath."""
    for problem in diagnosis.problems:
        mark = "repaired" if problem.repaired else "damage" if problem.damage else "note"
        if not people:
            write("\t".join((mark, problem.kind, safe(problem.where), safe(problem.message), safe(problem.remedy))))
            continue
        write(f"{mark}: {safe(problem.where)}: {safe(problem.message)}")
        if problem.remedy not in ("", "nothing"):
            write(f"  remedy: {safe(problem.remedy)}")
    checked = f"{counted(diagnosis.items, 'item')} in {counted(diagnosis.segments, 'segment')}"
    if diagnosis.sound:
        say(f"the index is sound: {checked}, {_size(diagnosis.bytes_checked)} checked")
    elif repair:
        say("the index is still damaged: not everything could be mended")
    else:
        say("the index is damaged; nothing was changed. `mmsearch doctor --repair` mends what can be mended")


def write_duplicates(report: DuplicateReport, *, people: bool) -> None:
    """Groups of near-duplicates, the picture to keep first; for programs tab-separated, with the group's number."""
    for number, group in enumerate(report.groups, 1):
        for what, one in (("keep", group.keep), *(("duplicate", one) for one in group.duplicates)):
            pixels = "?" if one.width is None or one.height is None else f"{one.width}x{one.height}"
            if not people:
                write(f"{number}\t{what}\t{pixels}\t{one.size}\t{safe(_shown_path(one))}")
            else:
                mark = "keep" if what == "keep" else ""
                write(f"{mark:<4}  {pixels:>11}  {_size(one.size):>9}  {safe(_shown_path(one))}")
        if people:
            write("")


def duplicate_lines(report: DuplicateReport) -> list[str]:
    """What `dupes` says beside the groups, for a person."""
    lines = []
    compared = counted(report.pictures, "picture")
    if report.groups:
        count = sum(len(group.duplicates) for group in report.groups)
        size = _size(sum(group.bytes for group in report.groups))
        found = f"{counted(count, 'near-duplicate')} in {counted(len(report.groups), 'group')}"
        lines.append(f"{found} among {compared}; without them {size} less")
    elif report.pictures:
        lines.append(f"no near-duplicates among {compared}")
    if report.left_out:
        files = counted(report.left_out, "file")
        lines.append(f"left out: {files} not there now, or changed since indexed (`mmsearch index` catches up)")
    return lines


def no_pictures(where: str | None, texts: int) -> str:
    """Why there was nothing to look at."""
    if where is not None:
        return "no pictures in the index pass the filter"
    return "no pictures in the index, only texts" if texts else "the index is empty"


def write_tags(tags: Sequence[TagCount], *, people: bool, examples: bool = False) -> None:
    """Tags with their counts, and a few pictures where asked for; for programs separated by tabs."""
    for one in tags:
        if not people:
            write(f"{one.pictures}\t{safe(one.tag)}")
            continue
        write(f"{one.pictures:>7,}  {safe(one.tag)}")
        for picture in one.best if examples else ():
            write(f"{'':>7}  {picture.relevance:>5.2f}  {safe(_shown_path(picture))}")


def tag_lines(report: TagReport) -> list[str]:
    """What `tag` says beside the tags, for a person."""
    if not report.pictures:
        return []
    given = sum(one.pictures for one in report.tags)
    unused = sum(not one.pictures for one in report.tags)
    verb = "got" if report.written else "would get"
    lines = [
        f"{report.tagged:,} of {counted(report.pictures, 'picture')} {verb} tags, {given:,} in all;"
        f" {_duration(report.seconds)}"
    ]
    if unused:
        lines.append(f"{counted(unused, 'label')} in no picture from relevance {report.min_relevance:g} on")
    if report.written:
        changed = f"{counted(report.changed, 'picture')} changed" if report.changed else "nothing has changed"
        lines.append(f"{changed}; pictures that are indexed from now on get tags when this is run again")
    else:
        lines.append("a dry run: nothing was written")
    return lines


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Failed files with their reasons; a long list is cut, `list --failed` has it whole."""
    if not failures:
        return []
    lines = [f"{len(failures):,} could not be indexed:"]
    lines += [f"  {safe(failure.path)}: {safe(failure.error)}" for failure in failures[:_FAILURES_SHOWN]]
    if len(failures) > _FAILURES_SHOWN:
        lines.append(f"  and {len(failures) - _FAILURES_SHOWN:,} more (`mmsearch list --failed` lists all)")
    return lines


def write_info(info: IndexInfo) -> None:
    """What an index holds, one fact a line."""
    facts = (
        ("index", safe(info.path)),
        ("model", safe(info.model)),
        ("items", f"{info.items:,} ({counted(info.images, 'image')}, {counted(info.texts, 'text')})"),
        ("generation", f"{info.generation:,}"),
        ("size", f"{_size(info.bytes)} in {counted(info.segments, 'segment')}"),
    )
    for name, value in facts:
        write(f"{name:<11} {value}")
    for root in info.roots:
        absent = "" if root.present else ", not there now"
        write(f"{'root':<11} {safe(root.path)} ({counted(root.items, 'item')}{absent})")
    for line in failure_lines(info.failed):
        write(line)


def write_models(models: Sequence[ModelStatus], *, people: bool) -> None:
    """The models that can be named: a table for people, tab-separated lines otherwise."""
    rows = [
        (
            f"{model.name} (default)" if model.default and people else model.name,
            model.state,
            _size(model.download_bytes) if model.download_bytes else "-",
            "~100" if model.languages == ("mul",) else " ".join(model.languages) or "-",
            "-" if model.coco is None else f"{model.coco:.3f}",
            "-" if model.flickr30k is None else f"{model.flickr30k:.3f}",
            model.licence or "-",
            "; ".join(part for part in (model.summary, model.why) if part),
        )
        for model in models
    ]
    head = ("name", "state", "download", "languages", "COCO", "Flickr30k", "licence", "notes")
    _write_rows(head, rows, people=people, narrow=("name", "state", "COCO", "Flickr30k"))


def write_rerankers(models: Sequence[RerankerStatus], *, people: bool) -> None:
    """The rerankers that can be named, as `write_models`."""
    rows = [
        (
            model.name,
            model.state,
            _size(model.download_bytes),
            " ".join(model.languages),
            model.reads,
            model.licence,
            "; ".join(part for part in (model.summary, model.why) if part),
        )
        for model in models
    ]
    head = ("reranker", "state", "download", "languages", "reads", "licence", "notes")
    _write_rows(head, rows, people=people, narrow=("reranker", "state"))


def _write_rows(head: Sequence[str], rows: Sequence[Sequence[str]], *, people: bool, narrow: Sequence[str]) -> None:
    """A table for people, tab-separated lines otherwise; the columns `narrow` are never folded."""
    if not people:
        for row in (head, *rows):
            write("\t".join(safe(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, no_wrap=name in narrow, overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    Console().print(table)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person is likely to read what is written there."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _shown_path(shown: Picture | TaggedPicture) -> str:
    return str(shown.path) if shown.path is not None else shown.uri


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 file`, `2,000 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
