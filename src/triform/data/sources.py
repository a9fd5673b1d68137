"""Sources of rows: files of text, JSON lines, CSV and Parquet, folders of them, the catalogue, Hugging Face `datasets`.

Rows are dictionaries. Files are read as streams: memory holds one line, paragraph or row group at a time.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, cast

from .cache import file_hash
from .catalogue import entries, entry, get, rows

By = Literal["line", "paragraph", "file"]
LONGEST_LINE = 256 * 2**20  # bytes
_EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


@dataclass(frozen=True)
class Source(Iterable[dict[str, Any]]):
    """Rows that can be read again and again; each pass opens the files anew. Made by `open_source`.

    Iterating raises ValueError, with the file and the line, for what cannot be read, and when there is no row at all.
    """

    spec: str
    read: Callable[[], Iterator[tuple[str, dict[str, Any]]]]
    text: str | None
    content: Callable[[], str]

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of what the rows are made of: the files' contents (read for it) and how they are read.

        Of Hugging Face data it is the name alone, since its content is not here.
        """
        return hashlib.sha256(json.dumps([self.content(), self.text]).encode()).hexdigest()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        empty = True
        for place, row in self.read():
            empty = False
            if self.text is not None:
                if self.text not in row:
                    raise ValueError(f"{place}: no column {self.text!r}; it has {', '.join(map(repr, row))} (text=… or --column names it)")
                if not isinstance(row[self.text], str):
                    raise ValueError(f"{place}: the column {self.text!r} should be text, not {type(row[self.text]).__name__}")
                if self.text != "text":
                    row = {"text": row[self.text]} | {key: value for key, value in row.items() if key not in (self.text, "text")}
            yield row
        if empty:
            raise ValueError(f"{self.spec}: empty; there is no text in it")


def open_source(spec: str | Path, text: str | None = "text", by: By = "line", encoding: str = "utf-8") -> Source:
    """The rows of a source.

    spec: a .txt, .jsonl, .csv, .tsv (each also .gz) or .parquet file; a folder of them (read in the order of their paths);
    a name of the catalogue (`./NAME` is a file or folder of that name); or "hf:NAME[@CONFIG][:SPLIT]" for Hugging Face
    `datasets`, streamed ("train" if no split is named).
    text: the column that holds the text; rows then have it as "text". None takes rows with whatever columns they have.
    by: what is a row of a .txt file: a line that is not blank, a paragraph (between blank lines), or the whole file.
    encoding: of text files; UTF-8 (a byte order mark is skipped), or for example "gb18030".

    Raises ValueError when there is no such thing or its kind is unknown.
    """
    spec = str(spec)
    if by not in ("line", "paragraph", "file"):
        raise ValueError(f"by={by!r}: a row of a text file is one of 'line', 'paragraph', 'file'")
    try:
        ascii_lines = "\n".encode(encoding) == b"\n"
    except LookupError:
        raise ValueError(f"no encoding is named {encoding!r}; examples are utf-8, gb18030, big5") from None
    if not ascii_lines:
        raise ValueError(f"files in {encoding} are not read; convert them to UTF-8 first (iconv -f {encoding} -t utf-8)")
    if spec.startswith("hf:"):
        return Source(spec, lambda: _hugging_face(spec), text, lambda: spec)
    if spec in entries():
        get(spec)
        return Source(spec, lambda: ((f"{spec}: row {i}", row) for i, row in enumerate(rows(spec))), text, lambda: _pinned(spec))
    files = _files(Path(spec))
    read = partial(_read_all, files, by, encoding, text or "text")
    return Source(spec, read, text, lambda: json.dumps([by, encoding, [[file.name, file_hash(file)] for file in files]]))


def _pinned(name: str) -> str:
    item = entry(name)
    return f"{name} {item.sha256 or sys.version}"


def _read_all(files: list[Path], by: By, encoding: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        yield from _read(file, by, encoding, text)


def _extension(path: Path) -> str | None:
    name = path.name.lower()
    return next((e for e in sorted(_EXTENSIONS, key=len, reverse=True) if name.endswith(e)), None)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and _extension(file))
        files = sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not files:
            raise ValueError(f"{path}: no file in this folder is one of {', '.join(_EXTENSIONS)}")
        return files
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder, nor a name of the catalogue ({', '.join(entries())})")
    if _extension(path) is None:
        raise ValueError(f"{path}: unknown kind of file; expected one of {', '.join(_EXTENSIONS)}")
    return [path]


def _read(path: Path, by: By, encoding: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    extension = cast(str, _extension(path))
    if extension == ".parquet":
        yield from _parquet(path)
        return
    try:
        with gzip.open(path, "rb") if extension.endswith(".gz") else path.open("rb") as stream:
            lines = _lines(path, cast(IO[bytes], stream), encoding)
            kind = extension.removesuffix(".gz")
            if kind == ".txt":
                yield from _texts(path, lines, by, text)
            elif kind == ".jsonl":
                yield from _json_lines(path, lines, text)
            else:
                yield from _table(path, lines, "\t" if kind == ".tsv" else ",")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged gzip file ({error})") from error


def _lines(path: Path, stream: IO[bytes], encoding: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, each with its line feed."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes; put line breaks into it")
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            hint = "UTF-16, convert it" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else 'another encoding, name it (encoding="gb18030")'
            raise ValueError(f"{path}, line {number}: not {encoding} (byte {error.start + 1} of the line); if it is {hint}") from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _texts(path: Path, lines: Iterator[tuple[int, str]], by: By, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    held: list[str] = []
    start = size = 0
    for number, line in lines:
        line = line.rstrip("\r\n")
        if by == "file" or (by == "paragraph" and line.strip()):
            start = start or number
            held.append(line)
            size += len(line)
            if size > LONGEST_LINE:
                raise ValueError(f"{path}, line {start}: one {by} of over {LONGEST_LINE:,} characters; read it by line")
        elif by == "line":
            if line.strip():
                yield f"{path}, line {number}", {text: line}
        elif held:
            yield f"{path}, line {start}", {text: "\n".join(held)}
            held, start, size = [], 0, 0
    if held and any(line.strip() for line in held):
        yield f"{path}, line {start}", {text: "\n".join(held)}


def _json_lines(path: Path, lines: Iterator[tuple[int, str]], text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(f"{place}: not JSON ({reason})") from None
        if isinstance(row, str):
            row = {text: row}
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object or a string, not {type(row).__name__}")
        yield place, row


def _table(path: Path, lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
        if header is None:
            header = fields
            if len(set(header)) != len(header):
                raise ValueError(f"{path}: two columns have the same name; the first line should name the columns")
        elif fields:
            if len(fields) != len(header):
                raise ValueError(f"{path}, line {reader.line_num}: {len(fields)} fields, but the first line names {len(header)} columns")
            yield f"{path}, line {reader.line_num}", dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError('reading .parquet needs pyarrow; pip install "triform[data]"') from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _hugging_face(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError('Hugging Face data needs datasets; pip install "triform[data]"') from None
    name, _, part = spec.removeprefix("hf:").partition(":")
    name, _, config = name.partition("@")
    if not name:
        raise ValueError(f"{spec!r} names no data; expected hf:NAME[@CONFIG][:SPLIT]")
    try:
        stream = datasets.load_dataset(name, config or None, split=part or "train", streaming=True)
    except Exception as error:  # whatever the hub, the network or the data answer
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{spec}: Hugging Face datasets could not open it ({reason[0]})") from error
    for number, row in enumerate(stream):
        yield f"{spec}: row {number}", dict(cast(Mapping[str, Any], row))
