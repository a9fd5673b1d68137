"""`triform inspect`: what a model is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from triform import config, hub, planner
from triform.config.files import replacing
from triform.hub.facts import facts
from triform.planner.describe import short
from triform.planner.quantities import data_size

app = typer.Typer(add_completion=False)


class _Row(NamedTuple):
    guide: str
    name: str
    shape: str
    parameters: str
    note: str


@app.command(
    epilog="Examples: triform inspect llama-3-8b  ·  triform inspect bert-base gpt2 --diagram both.svg  ·  "
    "triform inspect gpt2 decoder.depth=6 --json  ·  triform inspect minilm"
)
def inspect(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [override=...]",
            help="Presets; .yaml or .json configurations; models: folders, .gguf files, names of `triform pull` or of a hub, of which "
            "only the configuration is fetched. Overrides by path, such as decoder.depth=6, apply to each.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: an object, or a list for several models.")] = False,
    picture: Annotated[Path | None, typer.Option("--diagram", metavar="FILE.svg", help="Draw the models side by side.")] = None,
) -> None:
    """Show a model's parts with their shapes and parameter counts."""
    overrides = [text for text in models if "=" in text and not Path(text).exists()]
    names = [text for text in models if text not in overrides]
    if not names:
        raise ValueError("expected a preset's name or a path beside the overrides (`triform presets` lists the names)")
    found = [(name, *hub.find_spec(name, overrides)) for name in names]
    if picture is not None:
        _write(picture, planner.diagram([(Path(name).name or name, model) for name, model, _ in found]))
    if as_json:
        rows = [_data(name, model, place) for name, model, place in found]
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2, ensure_ascii=False))
        return
    for name, model, place in found:
        _print(name, model, place)
    if picture is not None:
        print(f"The diagram is in {picture}")


def _write(path: Path, text: str) -> None:
    if path.suffix.lower() != ".svg":
        raise ValueError(f"--diagram: expected a name that ends in .svg, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--diagram: expected a folder that exists, got {path.parent}")
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def _data(name: str, model: config.Model, place: Path | None) -> dict[str, Any]:
    count = planner.parameters(model)
    files = {} if place is None else {"path": str(place), "files": asdict(facts(place))}
    return {
        "name": name,
        **files,
        "form": model.form,
        "parameters": count.total,
        "active_parameters": count.active,
        "embedding_parameters": count.embedding,
        "config": config.to_dict(model, hint=config.Model),
        "tree": count.tree.to_dict()["children"],
    }


def _files(place: Path) -> str:
    """The files of a model in one line."""
    found = facts(place)
    numbers = ", ".join(f"{short(count)} in {kind}" for kind, count in found.numbers.items())
    weights = f"weights: {data_size(found.bytes)}, {numbers}" if numbers else "weights: not here"
    if found.adapter is not None:
        weights = f"{found.adapter}; {weights}"
        if not found.tokenizer:
            return f"{weights}\ntokenizer: that of the model"
    chat = "with a chat template" if found.chat_template else "no chat template"
    tokenizer = f"tokenizer: {found.tokenizer}, {found.vocab_size:,} tokens, {chat}" if found.tokenizer else "tokenizer: none"
    return f"{weights}\n{tokenizer}"


def _print(name: str, model: config.Model, place: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 140
    count = planner.parameters(model)
    active = f", {short(count.active)} active per token" if count.active != count.total else ""
    console.print(Text.assemble((name, "bold"), f"  {model.form}"))
    embedding = f"{count.embedding:,} in embeddings ({short(count.embedding)})"
    console.print(f"{count.total:,} parameters ({short(count.total)}){active}; {embedding}")
    if place is not None:
        console.print(_files(place))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("part", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for row in _rows(count.tree):
        table.add_row(Text.assemble((row.guide, "dim"), row.name), row.shape, row.parameters, Text(row.note))
    console.print(table)
    console.print()


def _rows(part: planner.Part, guide: str = "") -> Iterator[_Row]:
    parts = list(_shown(part))
    for index, (name, times, child) in enumerate(parts):
        last = index == len(parts) - 1
        branch = "" if not part.name and not guide else "└─ " if last else "├─ "
        below = "" if not branch else "   " if last else "│  "
        number = f"{times} × {child.count:,}" if times > 1 else f"{child.count:,}"
        weights_only = all(weight.shape is not None for weight in child.children)
        shape = _shape(child) if weights_only else ""
        yield _Row(guide + branch, name, shape, number, _note(child))
        if not weights_only:
            yield from _rows(replace(child, name=child.name or name), guide + below or " ")


def _shown(part: planner.Part) -> Iterator[tuple[str, int, planner.Part]]:
    """Children as (label, times, part): equal layers folded, a sublayer's body spread among its norms."""
    if part.children and part.children[0].name.isdigit() and part.name == "layers":
        alike: dict[planner.Part, list[int]] = {}
        for child in part.children:
            alike.setdefault(replace(child, name=""), []).append(int(child.name))
        for child, layers in alike.items():
            yield _ranges(layers), len(layers), child
        return
    for child in part.children:
        if child.name == "body":
            yield from ((f"body.{inner.name}", 1, inner) for inner in child.children)
        else:
            yield child.name, 1, child


def _ranges(numbers: list[int]) -> str:
    """Layers 0-4, 6-10; evenly spaced ones by their step."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    if len(texts) > 4:
        texts = [*texts[:2], "...", texts[-1]]
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(texts)}"


def _shape(part: planner.Part) -> str:
    if part.shape is not None:
        return " × ".join(f"{size:,}" for size in part.shape) or "scalar"
    texts = [(weight.name, _shape(weight)) for weight in part.children]
    if not texts:
        return ""
    first = texts[0][1] if texts[0][0] == "weight" else " ".join(texts[0])
    return ", ".join([first, *(f"{name} {shape}" for name, shape in texts[1:])])


def _note(part: planner.Part) -> str:
    body = next((child for child in part.children if child.name == "body"), None)
    shared = next((p.shared for p in (part, *part.children) if p.shared), None)
    return "; ".join(text for text in (part.note or (body.note if body else ""), shared and f"shared: {shared}") if text)
