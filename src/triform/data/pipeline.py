"""Documents from several sources normalised, filtered, deduplicated and checked against evaluation sets, on disk.

The folder holds the kept documents (text/SOURCE-NUMBER.jsonl), what was dropped and why (dropped/SOURCE-NUMBER.jsonl)
and manifest.json. While the work goes on, state.sqlite holds what is finished and the hashes of what was seen: a
transaction for each file of text, so that a process that is killed goes on after its last whole file, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

from triform import config
from triform.config.files import replacing, sync

from .cleaning import Clean, WeightedSource
from .duplicates import Seen
from .judge import Judge, Judged, judge_all
from .normalize import versions
from .overlap import EvaluationSet, read_evaluation_sets
from .rows import BadRows, Row
from .shards import fingerprint
from .sources import By, Source, open_source

FORMAT = 1
FILE_CHARACTERS = 8_000_000  # read for one file of text
CACHE_KIB = 32 * 2**10  # of the database, in memory
BATCH_ROWS, BATCH_CHARACTERS = 256, 500_000
_MANIFEST, _STATE = "manifest.json", "state.sqlite"
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Cleaned:
    """Documents that were prepared, in a folder. `manifest` tells the sources, what was read, kept and dropped, and the files."""

    folder: Path
    manifest: dict[str, Any]

    def parts(self) -> list[Iterable[dict[str, Any]]]:
        """The kept rows of each source; they can be read again and again."""
        return [_Kept([self.folder / file["name"] for file in each["files"]]) for each in self.manifest["sources"]]

    @classmethod
    def open(cls, folder: str | Path) -> Cleaned:
        """Open a folder that `prepare` wrote. Raises ValueError when it is none, or a file of text is missing or cut short."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"{folder}: prepared text of format {manifest['format']}, but this version reads {FORMAT}")
            files = [(folder / file["name"], int(file["bytes"])) for each in manifest["sources"] for file in each["files"]]
        except FileNotFoundError:
            raise ValueError(f"{folder}: no prepared text here; expected a folder with a {_MANIFEST}") from None
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / _MANIFEST}: not a manifest of prepared text ({error!r})") from None
        for file, size in files:
            if not file.is_file() or file.stat().st_size != size:
                raise ValueError(f"{file}: missing or cut short; delete {folder} to have it made again")
        return cls(folder, manifest)


@dataclass(frozen=True)
class _Kept(Iterable[dict[str, Any]]):
    files: list[Path]

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    yield Row(json.loads(line), f"{file}, line {number}")


def prepare(
    sources: Iterable[str | WeightedSource],
    folder: str | Path,
    clean: Clean | None = None,
    *,
    by: By = "line",
    workers: int = 1,
    progress: bool = True,
    bad: BadRows | None = None,
) -> Cleaned:
    """Normalise, filter and deduplicate the documents of `sources`, in their order, and write the rest into a folder.

    What the folder holds already of the same sources and settings is used: all of it, or what a killed process had finished.
    Memory does not grow with the text; on disk there are, while it works, 16 bytes a document, and about 1 kB with near-duplicates.

    sources: as `open_source` reads them; their weights change nothing here (see `Mixture`).
    clean: the stages and their settings, the defaults of `Clean` if None.
    by: what is a document of a .txt file.
    workers: processes that judge documents; with more than one a script needs `if __name__ == "__main__":`. The result is the same.
    progress: a bar on standard error, where that is a terminal.
    bad: as `open_source` takes it.

    Raises ValueError for a source that cannot be read, when nothing is left, and for a folder that holds something else.
    """
    clean, folder = clean or Clean(), Path(folder)
    opened = [open_source(each if isinstance(each, str) else each.source, text=None, by=by, bad=bad) for each in sources]
    facts = _facts(opened, clean, by)
    _claim(folder)
    with FileLock(folder / ".lock"):
        if (folder / _MANIFEST).is_file():
            done = Cleaned.open(folder)
            _same(folder, done.manifest["fingerprint"], facts)
            return done
        return _Preparation(folder, opened, clean, facts).run(workers, progress)


def _facts(sources: Sequence[Source], clean: Clean, by: By) -> dict[str, Any]:
    held = [] if clean.overlap is None else [open_source(name, text=None).fingerprint() for name in clean.overlap.sources]
    facts = {
        "format": FORMAT,
        "sources": [[source.spec, source.fingerprint()] for source in sources],
        "clean": config.to_dict(clean, defaults=True),
        "by": by,
        "versions": {} if clean.normalize is None else versions(clean.normalize),
        "evaluation_sets": held,
    }
    return {"fingerprint": fingerprint(facts), **facts}


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name another folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {".lock"} and not names & {_MANIFEST, _STATE}:
        raise ValueError(f"{folder}: exists and holds something else than prepared text; name another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _same(folder: Path, found: str, facts: Mapping[str, Any]) -> None:
    if found != facts["fingerprint"]:
        raise ValueError(f"{folder}: holds text prepared from other sources or in another way; name another folder, or delete it")


class _File:
    """One file of text as it is made, with its counts."""

    def __init__(self, source: int, number: int, first_row: int) -> None:
        self.source, self.number, self.row = source, number, first_row
        self.kept: list[bytes] = []
        self.gone: list[bytes] = []
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.overlap: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()

    def add(self, one: Judged, reason: str | None) -> None:
        size = len(one.text)
        self.counts["read"] += 1
        self.counts["characters_read"] += size
        self.overlap.update(one.found_in)
        self.row += 1
        if reason is None:
            self.counts["kept"] += 1
            self.counts["characters_kept"] += size
            self.lengths[length_bin(size)] += 1
            self.kept.append(_line(one.row))
        else:
            self.dropped[reason] += 1
            self.gone.append(_line({"row": self.row, "reason": reason, "text": one.text[:200]}))

    def write(self, folder: Path) -> dict[str, Any]:
        name = f"{self.source:03}-{self.number:05}.jsonl"
        data = b"".join(self.kept)
        for place, content in ((folder / "text", data), (folder / "dropped", b"".join(self.gone))):
            place.mkdir(exist_ok=True)
            with replacing(place / name) as file:
                file.write_bytes(content)
                sync(file)
        counts = {key: self.counts[key] for key in ("read", "kept", "characters_read", "characters_kept")}
        tallies = {key: dict(sorted(getattr(self, key).items())) for key in ("dropped", "overlap", "lengths")}
        told = {"name": f"text/{name}", "documents": counts["kept"], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return {"source": self.source, **counts, **tallies, "file": told}


def length_bin(size: int) -> int:
    """Which of the bins [2^(k/2), 2^((k+1)/2)) a length is in."""
    return int(2 * math.log2(size)) if size else 0


def _line(row: Fields) -> bytes:
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")


class _Preparation:
    def __init__(self, folder: Path, sources: Sequence[Source], clean: Clean, facts: dict[str, Any]) -> None:
        self.folder, self.sources, self.clean, self.facts = folder, sources, clean, facts

    def run(self, workers: int, progress: bool) -> Cleaned:
        state = sqlite3.connect(self.folder / _STATE, isolation_level=None)
        try:
            sets = [] if self.clean.overlap is None else read_evaluation_sets(self.clean.overlap)
            self._open(state)
            with _bar(self.sources, progress) as bar:
                for index in range(len(self.sources)):
                    self._source(state, index, Judge(self.clean, sets), workers, bar)
            files = [json.loads(facts) for (facts,) in state.execute("SELECT facts FROM files ORDER BY source, number")]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.folder / _STATE}: cannot be used ({error}); delete {self.folder} to begin anew") from None
        finally:
            state.close()
        manifest = _manifest(self.facts, files, sets)
        if not manifest["kept"]:
            why = ", ".join(f"{reason} {count:,}" for reason, count in manifest["dropped"].items())
            raise ValueError(f"none of {manifest['read']:,} documents is left ({why}); see data.clean in the recipe")
        with replacing(self.folder / _MANIFEST) as file:
            file.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")
            sync(file)
        (self.folder / _STATE).unlink()
        return Cleaned(self.folder, manifest)

    def _open(self, state: sqlite3.Connection) -> None:
        for left in self.folder.rglob(".*.tmp"):  # by a process that was killed
            left.unlink()
        state.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        state.execute("BEGIN IMMEDIATE")
        state.execute("CREATE TABLE IF NOT EXISTS work (fingerprint TEXT)")
        state.execute("CREATE TABLE IF NOT EXISTS files (source INTEGER, number INTEGER, facts TEXT, PRIMARY KEY (source, number))")
        state.execute("CREATE TABLE IF NOT EXISTS finished (source INTEGER PRIMARY KEY)")
        self.seen = None if self.clean.deduplicate is None else Seen(state, self.clean.deduplicate)
        begun = state.execute("SELECT fingerprint FROM work").fetchone()
        if begun is None:
            state.execute("INSERT INTO work VALUES (?)", (self.facts["fingerprint"],))
        else:
            _same(self.folder, begun[0], self.facts)
        state.execute("COMMIT")

    def _source(self, state: sqlite3.Connection, index: int, judge: Judge, workers: int, bar: Progress) -> None:
        done = [json.loads(facts) for (facts,) in state.execute("SELECT facts FROM files WHERE source = ?", (index,))]
        read = sum(each["read"] for each in done)
        if state.execute("SELECT 1 FROM finished WHERE source = ?", (index,)).fetchone():
            return
        rows = islice(_checked(self.sources[index], self.clean.columns), read, None)
        file = _File(index, len(done), read)
        state.execute("BEGIN IMMEDIATE")
        for judged in judge_all(_batches(rows, self.clean.columns), judge, workers):
            for one in judged:
                file.add(one, self._reason(one))
            bar.advance(bar.task_ids[0], sum(len(one.text.encode("utf-8", "replace")) for one in judged))
            if file.counts["characters_read"] >= FILE_CHARACTERS:
                self._finish(state, file)
                file = _File(index, file.number + 1, file.row)
                state.execute("BEGIN IMMEDIATE")
        state.execute("INSERT INTO finished VALUES (?)", (index,))
        self._finish(state, file)

    def _reason(self, one: Judged) -> str | None:
        reason = one.reason
        if reason is None and self.seen is not None:
            reason = self.seen.add(one.key, one.signature)
        if reason is None and one.found_in and self.clean.overlap is not None and self.clean.overlap.action == "drop":
            reason = "overlap"
        return reason

    def _finish(self, state: sqlite3.Connection, file: _File) -> None:
        if file.counts["read"]:
            facts = file.write(self.folder)
            state.execute("INSERT INTO files VALUES (?, ?, ?)", (file.source, file.number, json.dumps(facts)))
        state.execute("COMMIT")


def _checked(source: Source, columns: Sequence[str]) -> Iterator[Fields]:
    for row in source:
        lacking = next((name for name in columns if not isinstance(row.get(name), str)), None)
        if lacking is None:
            yield row
        else:
            has = ", ".join(map(repr, row))
            source.bad.add(ValueError(f"no text in the column {lacking!r}, but {has} (set data.clean.columns)"), row.place)


def _batches(rows: Iterator[Fields], columns: Sequence[str]) -> Iterator[list[Fields]]:
    batch: list[Fields] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(row[name]) for name in columns)
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _manifest(facts: dict[str, Any], files: Sequence[dict[str, Any]], sets: Sequence[EvaluationSet]) -> dict[str, Any]:
    def total(among: Sequence[dict[str, Any]]) -> dict[str, Any]:
        counts: dict[str, Any] = {
            key: sum(each[key] for each in among) for key in ("read", "kept", "characters_read", "characters_kept")
        }
        for key in ("dropped", "overlap", "lengths"):
            tally: Counter[str] = Counter()
            for each in among:
                tally.update(each[key])
            counts[key] = dict(sorted(tally.items(), key=lambda item: int(item[0]) if key == "lengths" else (-item[1], item[0])))
        return counts

    of_source = [[each for each in files if each["source"] == i] for i in range(len(facts["sources"]))]
    sources = [
        {"source": name, "fingerprint": found, **total(among), "files": [each["file"] for each in among]}
        for (name, found), among in zip(facts["sources"], of_source, strict=True)
    ]
    told = [{"name": each.name, "texts": each.texts, "too_short": each.short, "ngrams": len(each.grams)} for each in sets]
    return {**facts, "evaluation_sets": told, **total(files), "sources": sources}


def _bar(sources: Sequence[Source], progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    left = (TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, *left, console=console, transient=True, disable=not (progress and console.is_terminal))
    sizes = [_size(source.spec) for source in sources]
    bar.add_task("cleaning", total=None if None in sizes else sum(filter(None, sizes)))
    return bar


def _size(spec: str) -> int | None:
    """The bytes of a source of plain text files, None where they are not known before they are read."""
    path = Path(spec)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) if files and all(file.suffix in (".txt", ".jsonl") for file in files) else None
