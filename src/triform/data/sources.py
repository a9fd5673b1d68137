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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, cast

from .cache import file_hash
from .catalogue import entries, entry, get, rows
from .rows import BadRows, Row

By = Literal["line", "paragraph", "file"]
Found = tuple[str, dict[str, Any] | ValueError]  # a row, or what is wrong with it, and where it is
LONGEST_LINE = 256 * 2**20  # bytes
LARGEST_JSON = 2**30  # bytes of a .json file, which is read whole
_EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


@dataclass(frozen=True)
class Source(Iterable[dict[str, Any]]):
    """Rows that can be read again and again; each pass opens the files anew. Made by `open_source`.

    Iterating raises ValueError, with the file and the line, for what cannot be read, and when there is no row at all.
    """

    spec: str
    read: Callable[[], Iterator[Found]]
    text: str | None
    content: Callable[[], str]
    bad: BadRows = field(default_factory=BadRows)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of what the rows are made of: the files' contents (read for it) and how they are read.

        Of Hugging Face data it is the name alone, since its content is not here.
        """
        return hashlib.sha256(json.dumps([self.content(), self.text]).encode()).hexdigest()

    def __iter__(self) -> Iterator[Row]:
        empty = True
        for place, row in self.read():
            wrong = row if isinstance(row, ValueError) else self._wrong(row)
            if wrong is not None:
                self.bad.add(wrong, place)
                continue
            assert isinstance(row, dict)
            empty = False
            if self.text not in (None, "text"):
                row = {"text": row[self.text]} | {key: value for key, value in row.items() if key not in (self.text, "text")}
            yield Row(row, place)
        if empty:
            raise ValueError(f"{self.spec}: empty; there is no text in it" + (f" ({self.bad.first})" if len(self.bad) else ""))

    def _wrong(self, row: Mapping[str, Any]) -> ValueError | None:
        """What is wrong with the column of the text, where one is named."""
        if self.text is None:
            return None
        if self.text not in row:
            return ValueError(f"no column {self.text!r}; it has {', '.join(map(repr, row))} (text=… or --column names it)")
        if not isinstance(row[self.text], str):
            return ValueError(f"the column {self.text!r} should be text, not {type(row[self.text]).__name__}")
        return None


def open_source(
    spec: str | Path, text: str | None = "text", by: By = "line", encoding: str = "utf-8", bad: BadRows | None = None
) -> Source:
    """The rows of a source.

    spec: a .txt, .jsonl, .csv, .tsv (each also .gz) or .parquet file; a folder of them (read in the order of their paths);
    a .json file (a list of objects, or as SQuAD has it); a name of the catalogue (`./NAME` is a file or folder of that
    name); or "hf:NAME[@CONFIG][:SPLIT]" for Hugging Face `datasets`, streamed ("train" if no split is named).
    text: the column that holds the text; rows then have it as "text". None takes rows with whatever columns they have.
    by: what is a row of a .txt file: a line that is not blank, a paragraph (between blank lines), or the whole file.
    encoding: of text files; UTF-8 (a byte order mark is skipped), or for example "gb18030".
    bad: who is told of rows that cannot be read, and whether they are left out; by default the first one is an error.

    Raises ValueError when there is no such thing or its kind is unknown.
    """
    spec, bad = str(spec), BadRows() if bad is None else bad
    if by not in ("line", "paragraph", "file"):
        raise ValueError(f"by={by!r}: a row of a text file is one of 'line', 'paragraph', 'file'")
    try:
        ascii_lines = "\n".encode(encoding) == b"\n"
    except LookupError:
        raise ValueError(f"no encoding is named {encoding!r}; examples are utf-8, gb18030, big5") from None
    if not ascii_lines:
        raise ValueError(f"files in {encoding} are not read; convert them to UTF-8 first (iconv -f {encoding} -t utf-8)")
    if spec.startswith("hf:"):
        return Source(spec, lambda: _hugging_face(spec), text, lambda: spec, bad)
    if spec in entries():
        get(spec)
        return Source(spec, lambda: ((f"{spec}: row {i}", row) for i, row in enumerate(rows(spec))), text, lambda: _pinned(spec), bad)
    files = _files(Path(spec))
    read = partial(_read_all, files, by, encoding, text or "text")
    return Source(spec, read, text, lambda: json.dumps([by, encoding, [[file.name, file_hash(file)] for file in files]]), bad)


def _pinned(name: str) -> str:
    item = entry(name)
    return f"{name} {item.sha256 or sys.version}"


def _read_all(files: list[Path], by: By, encoding: str, text: str) -> Iterator[Found]:
    for file in files:
        yield from _read(file, by, encoding, text)


def _extension(path: Path) -> str | None:
    name = path.name.lower()
    return next((e for e in sorted(_EXTENSIONS, key=len, reverse=True) if name.endswith(e)), None)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and _extension(file) not in (None, ".json"))  # settings are .json
        files = sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not files:
            raise ValueError(f"{path}: no file in this folder is one of {', '.join(e for e in _EXTENSIONS if e != '.json')}")
        return files
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder, nor a name of the catalogue ({', '.join(entries())})")
    if _extension(path) is None:
        raise ValueError(f"{path}: unknown kind of file; expected one of {', '.join(_EXTENSIONS)}")
    return [path]


def _read(path: Path, by: By, encoding: str, text: str) -> Iterator[Found]:
    extension = cast(str, _extension(path))
    if extension == ".parquet":
        yield from _parquet(path)
        return
    if extension == ".json":
        yield from _json(path, encoding)
        return
    try:
        with gzip.open(path, "rb") if extension.endswith(".gz") else path.open("rb") as stream:
            lines = _lines(path, cast(IO[bytes], stream), encoding)
            kind = extension.removesuffix(".gz")
            if kind == ".jsonl":
                yield from _json_lines(path, lines, text)
            elif kind == ".txt":
                yield from _texts(path, _whole(path, lines), by, text)
            else:
                yield from _table(path, _whole(path, lines), "\t" if kind == ".tsv" else ",")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged gzip file ({error})") from error


def _lines(path: Path, stream: IO[bytes], encoding: str) -> Iterator[tuple[int, str | ValueError]]:
    """The lines of a file with their numbers, each with its line feed, or what is wrong with its bytes."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes; put line breaks into it")
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            hint = "UTF-16, convert it" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else 'another encoding, name it (encoding="gb18030")'
            yield number, ValueError(f"not {encoding} (byte {error.start + 1} of the line); if it is {hint}")
        else:
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _whole(path: Path, lines: Iterator[tuple[int, str | ValueError]]) -> Iterator[tuple[int, str]]:
    """Lines that must all be readable, as what a line means depends on those before."""
    for number, line in lines:
        if isinstance(line, ValueError):
            raise ValueError(f"{path}, line {number}: {line}")
        yield number, line


def _texts(path: Path, lines: Iterator[tuple[int, str]], by: By, text: str) -> Iterator[Found]:
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


def _json_lines(path: Path, lines: Iterator[tuple[int, str | ValueError]], text: str) -> Iterator[Found]:
    for number, line in lines:
        if isinstance(line, ValueError) or line.strip():
            yield f"{path}, line {number}", line if isinstance(line, ValueError) else _object(line, text)


def _object(line: str, text: str) -> dict[str, Any] | ValueError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return ValueError(f"not JSON ({reason})")
    if isinstance(row, str):
        row = {text: row}
    return row if isinstance(row, dict) else ValueError(f"expected a JSON object or a string, not {type(row).__name__}")


def _json(path: Path, encoding: str) -> Iterator[Found]:
    """The objects of a list, or the questions of a file as SQuAD has it, each with its passage as `context`."""
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path}: expected at most {LARGEST_JSON:,} bytes of JSON, got {size:,}; write a row a line (.jsonl)")
    try:
        data = json.loads(path.read_bytes().decode(encoding).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        data = data["data"]
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a list of objects, not {type(data).__name__}; write a row a line (.jsonl)")
    for number, row in enumerate(data, 1):
        place = f"{path}, entry {number}"
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            yield from _questions(row["paragraphs"], place)
        else:
            yield place, row if isinstance(row, dict) else ValueError(f"expected an object, not {type(row).__name__}")


def _questions(paragraphs: list[Any], place: str) -> Iterator[Found]:
    for number, paragraph in enumerate(paragraphs, 1):
        here = f"{place}, paragraph {number}"
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list):
            yield here, ValueError("expected 'context' and a list 'qas'")
            continue
        for place_in, question in enumerate(asked, 1):
            fits = isinstance(question, dict)
            row = {**question, "context": paragraph.get("context")} if fits else ValueError("expected a question with its answers")
            yield f"{here}, question {place_in}", row


def _table(path: Path, lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[Found]:
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
                wrong = ValueError(f"{len(fields)} fields, but the first line names {len(header)} columns")
                yield f"{path}, line {reader.line_num}", wrong
            else:
                yield f"{path}, line {reader.line_num}", dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Iterator[Found]:
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


def _hugging_face(spec: str) -> Iterator[Found]:
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
