"""Rows of data files: where they come from and on which line. What the columns mean is not known here."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import MissingExtraError, RecordError, StorageError
from prefopt.records import parse_line
from prefopt.values import JsonValue, describe, refuse_lone_surrogates

Row = Mapping[str, JsonValue]

_TABLES = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_KNOWN = (
    ".jsonl, .ndjson, .json, .csv, .tsv (each also as .gz), .parquet, or a folder saved by datasets"
)


class SourceRow(NamedTuple):
    """One row of a source."""

    origin: str
    """`file:line`; rows of Parquet files and saved datasets count from 1."""
    values: Row


class RowSource(NamedTuple):
    """The rows of one file, folder or hub data set."""

    name: str
    """The file's or data set's name without folders, for titles."""
    stem: str
    """The name without its ending, for record ids."""
    rows: list[SourceRow]
    textual: bool
    """Whether every value is a text (CSV), so that numbers and lists have to be parsed."""


def read_rows(source: str | Path, *, split: str = "train", limit: int | None = None) -> RowSource:
    """The first `limit` rows (all when None) of a file, a folder saved by `datasets`, or a hub data set.

    A name of the form `owner/name` that is no path is fetched from the hub; nothing else uses the network.

    Raises:
        StorageError: the path does not exist (near names are suggested) or cannot be read.
        RecordError: the file is empty or broken; the message names file and line.
    """
    path = Path(source)
    if not path.exists():
        if (
            not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))
            or path.parent.is_dir()
            or _ending(path) in _ENDINGS
        ):
            raise StorageError(_missing(path))
        name, stem, rows = str(source), path.name, _hub_rows(str(source), split)
    elif path.is_dir():
        name, stem, rows = path.name, path.name, _folder_rows(path, split)
    elif _ending(path) not in _ENDINGS:
        raise RecordError(
            f"{path}: data files of type '{path.suffix}' cannot be read; use {_KNOWN}"
        )
    else:
        name, stem, rows = path.name, _plain(path).stem, _file_rows(path)
    found = list(itertools.islice(rows, limit))
    if not found:
        raise RecordError(f"{source}: there are no rows; give a file with at least one")
    return RowSource(name, stem, found, _ending(path) in _TABLES and path.is_file())


def _plain(path: Path) -> Path:
    """The path without `.gz`."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _ending(path: Path) -> str:
    """What a file is, whether compressed or not; Parquet compresses by itself."""
    ending = _plain(path).suffix.lower()
    return ".gz" if ending == ".parquet" and path.suffix.lower() == ".gz" else ending


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f"{path}: no such file, and its folder {folder} does not exist either; check the path"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path"
    return f"{path}: no such file; {hint}"


def _file_rows(path: Path) -> Iterator[SourceRow]:
    ending = _ending(path)
    if ending == ".parquet":
        return _parquet_rows(path)
    text = _read_text(path)
    if ending in _TABLES:
        return _table_rows(text, path, _TABLES[ending])
    if ending == ".json" and not _holds_lines(text):
        return _json_rows(text, path)
    return _line_rows(text, path)


def _read_text(path: Path) -> str:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return path.read_text(encoding="utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecordError(
            f"{path}: is no whole gzip file ({error}); copy it anew, or unpack it"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{path}: no UTF-8 text at byte {error.start}; save the file as UTF-8"
        ) from error


def _holds_lines(text: str) -> bool:
    """Whether a `.json` file is JSON Lines in truth: its first line is an object of its own, and more follow."""
    first, _, rest = text.strip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False
    return True


def _line_rows(text: str, path: Path) -> Iterator[SourceRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield SourceRow(f"{path}:{number}", parse_line(line, f"{path}:{number}"))


_SPACE = re.compile(r"\s*")


def _json_rows(text: str, path: Path) -> Iterator[SourceRow]:
    """Items of a JSON list, each with the line it starts on."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    if not text[at:]:
        return
    if text[at] != "[":
        raise RecordError(f"{path}: {_not_a_list(text, path)}; wrap the rows in [ ], or use .jsonl")
    line, counted = 1, 0
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        origin = f"{path}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _broken(path, error) from error
        if not isinstance(value, dict):
            raise RecordError(
                f"{origin}: the row is {describe(value)}; every row has to be an object"
            )
        refuse_lone_surrogates(value, origin, source=text[counted:at])
        yield SourceRow(origin, value)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _broken(path, json.JSONDecodeError("expected ',' or ']' after the row", text, at))


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _broken(path: Path, error: json.JSONDecodeError) -> RecordError:
    return RecordError(
        f"{path}:{error.lineno}: broken JSON at column {error.colno} ({error.msg}); repair the file there"
    )


def _not_a_list(text: str, path: Path) -> str:
    try:
        return f"the file is {describe(json.loads(text))}, not a list of rows"
    except json.JSONDecodeError as error:
        raise _broken(path, error) from error


def _table_rows(text: str, path: Path, delimiter: str) -> Iterator[SourceRow]:
    """Rows of a table with a header line; every cell is a text."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(header, path)
        while True:
            line = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                raise RecordError(
                    f"{path}:{line}: {len(cells)} cells, but the header names {len(header)} columns; "
                    "put texts with commas, quotes or line breaks into double quotes"
                )
            yield SourceRow(f"{path}:{line}", dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise RecordError(
            f"{path}:{reader.line_num}: broken table ({error}); check the quotes of this line"
        ) from error


def _check_header(header: list[str], path: Path) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise RecordError(
            f"{path}:1: the header names column '{repeated[0]}' twice; rename one of them, or add the "
            "missing header line, such as prompt,chosen,rejected"
        )


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Parquet needs pyarrow; pip install pyarrow"
        ) from error
    try:
        table = parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield SourceRow(f"{path}:{number}", values)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(
            f"{path}: no readable Parquet file ({reason}); write it again or copy it anew"
        ) from error


def _folder_rows(path: Path, split: str) -> Iterator[SourceRow]:
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _ENDINGS)
        hint = f"name one of its files, such as {path / files[0]}" if files else f"use {_KNOWN}"
        raise RecordError(f"{path}: the folder was not saved by datasets; {hint}")
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(
            f"{path}: the saved dataset cannot be read ({reason}); save it again"
        ) from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise RecordError(
                f"{path}: no split '{split}'; there are {', '.join(map(str, loaded))}"
            )
        loaded = loaded[split]
    return _numbered(loaded, f"{path}[{split}]")


def _hub_rows(name: str, split: str) -> Iterator[SourceRow]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise StorageError(
            f"{name}: no such file, and the hub gave no data set of that name ({reason}); check the "
            "path or name, the split and the network"
        ) from error
    return _numbered(loaded, f"{name}[{split}]")


def _numbered(rows: object, where: str) -> Iterator[SourceRow]:
    for number, values in enumerate(rows, start=1):  # pyright: ignore[reportArgumentType]
        yield SourceRow(f"{where}:{number}", values)


_ENDINGS = (*_LINES, *_TABLES, ".json", ".parquet")
