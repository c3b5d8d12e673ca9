"""The kinds of files that manifests are: records by column name, streamed, with the bad ones among them."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from mmsearch.retrieval.errors import MediaError, MissingExtra, UsageError

if TYPE_CHECKING:
    from mmsearch.indexers.manifests import Columns

_DELIMITERS = ",;\t|"
_END = "\0end of the manifest\n"  # a line of its own, unless a quote before it is open
_PARQUET_ROWS = 1024

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # 007 is a code, not seven
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)?\.?[0-9]+([eE][-+]?[0-9]+)?|-?[0-9]+\.")
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that is none, and what of it tells it from others."""

    error: str
    said: object


Record = Mapping[str, object] | Bad


class Table(Protocol):
    """A kind of file with records; the implementations are below."""

    names: list[str]

    def prepare(self, columns: Columns) -> None:
        """Told what the columns are, before `values` and `records`."""
        ...

    def values(self, name: str) -> Iterator[object]:
        """One column."""
        ...

    def records(self) -> Iterator[tuple[int, Record]]:
        """Numbers from 1 with records by column name."""
        ...


def _open(path: Path, newline: str) -> TextIO:
    """Text in UTF-8, or as a byte order mark says; bytes that are none survive as halves of surrogate pairs."""
    with open(path, "rb") as file:
        head = file.read(4)
    encoding, errors = "utf-8-sig", "surrogateescape"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding, errors = "utf-32", "surrogatepass"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, errors = "utf-16", "surrogatepass"
    return open(path, encoding=encoding, errors=errors, newline=newline)


class _Csv:
    """Comma-separated values, or by what else the first line is separated. All cells of a column have one type."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with _open(path, "") as file:
                first = file.readline()
        except UnicodeError as error:
            raise MediaError(f"{path} is no text file: {error}") from error
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
        # The limit belongs to the process, and the usual one (131,072) is shorter than a long text.
        csv.field_size_limit(max(csv.field_size_limit(), min(2**31 - 1, path.stat().st_size + 1)))
        header = next((cells for _, cells in self._lines()), None)
        if header is None:
            raise UsageError(f"{path} is empty; its first line must name its columns")
        self._header = [name.strip() for name in header]
        self.names = [name for name in self._header if name]
        if any("\0" in name or not _is_text(name) for name in self.names):
            raise MediaError(f"{path} is not a CSV file in UTF-8: its first line names no columns")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UsageError(f"{path} has two columns called {twice[0]}; rename one")
        self._types: dict[str, Callable[[str], object]] = {}

    def prepare(self, columns: Columns) -> None:
        """Finds the types of the further columns."""
        guesses = {name: _Guess() for name in self.names if name not in (columns.text, columns.image, columns.id)}
        for _, record in self._cells():
            if not isinstance(record, Bad):
                for name, guess in guesses.items():
                    guess.see(record.get(name, ""))
        self._types = {name: guess.type() for name, guess in guesses.items()}

    def values(self, name: str) -> Iterator[object]:
        """One column."""
        for _, record in self._cells():
            if not isinstance(record, Bad):
                yield record.get(name)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Rows by name; empty cells are left out."""
        for number, cells in self._cells():
            if isinstance(cells, Bad):
                yield number, cells
            else:
                record = {name: self._types.get(name, str)(cell) for name, cell in cells.items() if cell.strip()}
                yield number, record

    def _cells(self) -> Iterator[tuple[int, Mapping[str, str] | Bad]]:
        lines = self._lines()
        next(lines, None)
        for number, (line, cells) in enumerate(lines, 1):
            if len(cells) > len(self._header) and any(cell.strip() for cell in cells[len(self._header) :]):
                error = f"it has {len(cells)} cells and there are {len(self._header)} columns (line {line})"
                yield number, Bad(error, cells)
            else:
                yield number, {name: cell for name, cell in zip(self._header, cells, strict=False) if name}

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Rows of cells with the number of their last line; those without anything are passed over."""
        with _open(self._path, "") as file:
            reader = csv.reader(chain(file, ["\n", _END]), delimiter=self._delimiter)
            ended = False
            start = 0
            try:
                for cells in reader:
                    if cells == [_END.rstrip()]:
                        ended = True
                    elif any(_END.rstrip() in cell for cell in cells[-1:]):
                        break
                    elif any(cell.strip() for cell in cells):
                        yield reader.line_num, cells
                    start = reader.line_num
            except (csv.Error, UnicodeError) as error:
                raise MediaError(f"{self._path}, line {reader.line_num}: {error}") from error
        if not ended:
            raise MediaError(f"{self._path} has a quote that is never closed, in the row after line {start}")


def _delimiter(line: str) -> str:
    """What separates the names in a first line: the commonest candidate outside quotes."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(_DELIMITERS, key=bare.count)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Guess:
    """The narrowest type that all cells of a column have."""

    def __init__(self) -> None:
        self._possible = {"int", "float", "bool"}
        self._seen = False

    def see(self, cell: str) -> None:
        cell = cell.strip()
        if not cell or not self._possible:
            return
        self._seen = True
        if not (_WHOLE.fullmatch(cell) and -(2**63) <= int(cell) < 2**63):
            self._possible.discard("int")
        if not (_DECIMAL.fullmatch(cell) and math.isfinite(float(cell))) or re.fullmatch(r"-?0[0-9]+", cell):
            self._possible.discard("float")
        if cell.lower() not in _TRUTH:
            self._possible.discard("bool")

    def type(self) -> Callable[[str], object]:
        """What makes a value of a cell."""
        if not self._seen or not self._possible:
            return str
        if "int" in self._possible:
            return int
        if "float" in self._possible:
            return float
        return lambda cell: _TRUTH[cell.strip().lower()]


class _JsonLines:
    """One JSON object a line; the names are those of all of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        names: dict[str, None] = {}
        some = False
        for _, record in self.records():
            some = True
            if not isinstance(record, Bad):
                names.update(dict.fromkeys(record))
        if not some:
            raise UsageError(f"{path} is empty; each line must be a JSON object")
        if not names:
            raise MediaError(f"{path} has no line that is a JSON object")
        self.names = list(names)

    def prepare(self, columns: Columns) -> None:
        """Nothing: JSON has types."""

    def values(self, name: str) -> Iterator[object]:
        """One column."""
        for _, record in self.records():
            if not isinstance(record, Bad):
                yield record.get(name)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Objects; empty lines are passed over, and counted."""
        with _open(self._path, "\n") as file:
            try:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, _object(line)
            except UnicodeError as error:
                raise MediaError(f"{self._path} is no text file: {error}") from error


def _object(line: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Bad(f"it is no JSON: {error}", line)
    if not isinstance(record, dict):
        return Bad('it is no JSON object, such as {"image": "a.jpg", "text": "a cat"}', line)
    return record


class _Parquet:
    """A Parquet file. Columns of bytes are left out of what is kept of a row."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtra(f"reading {path} needs pyarrow: pip install 'mmsearch[parquet]'") from error
        self._path = path
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, ValueError, OverflowError)
        with open(path, "rb"):  # a file that cannot be read is no damaged file
            pass
        try:
            schema = pyarrow.parquet.read_schema(path)
        except self._errors as error:
            raise MediaError(f"{path} is no Parquet file: {error}") from error
        types = pyarrow.types
        bytes_ = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
        self._binary = {field.name for field in schema if any(is_(field.type) for is_ in bytes_)}
        self._microseconds = {
            field.name: pyarrow.timestamp("us", field.type.tz)
            for field in schema
            if types.is_timestamp(field.type) and field.type.unit == "ns"  # Python's own times have no nanoseconds
        }
        self._structs = {field.name for field in schema if types.is_struct(field.type)}
        self.names = list(schema.names)
        if not self.names:
            raise UsageError(f"{path} is empty; it has no columns")
        self._kept = [name for name in self.names if name not in self._binary]

    def prepare(self, columns: Columns) -> None:
        """Makes sure that pictures are named, not stored."""
        if columns.image in self._binary | self._structs:
            raise UsageError(
                f"the column {columns.image} of {self._path} holds the bytes of pictures; a manifest must name files: "
                "write them to a folder first"
            )

    def values(self, name: str) -> Iterator[object]:
        """One column."""
        for record in self._read([name]):
            yield record[name]

    def records(self) -> Iterator[tuple[int, Record]]:
        """Rows by name."""
        return enumerate(self._read(self._kept), 1)

    def _read(self, names: list[str]) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=names):
                    for name in self._microseconds.keys() & set(names):
                        at = batch.schema.get_field_index(name)
                        column = batch.column(at).cast(self._microseconds[name], safe=False)
                        batch = batch.set_column(at, name, column)
                    yield from batch.to_pylist()
        except self._errors as error:
            raise MediaError(f"{self._path} is a damaged Parquet file: {error}") from error


TABLES: dict[str, Callable[[Path], Table]] = {
    ".csv": _Csv,
    ".tsv": _Csv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
}
