"""`triform presets`: the named models."""

import json
from typing import Annotated

import typer

from triform import config

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform presets --json")
def presets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that are known by name, with their form and where their shape is published."""
    rows = [{"name": name, "form": config.preset(name).form, "source": config.source(name)} for name in config.presets()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"] or "") for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['form']:16}  {row['source'] or ''}".rstrip())
