"""`triform demo`: a storyteller, a critic and a translator from nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="The folder for models and report; an interrupted demo goes on there.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps of each only, to see that everything runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train three small Transformers of three forms on real Chinese text, in minutes on two CPU cores, and write a report to look at."""
    from triform.demo import run_demo, summary

    results = run_demo(out, quick=quick)
    if as_json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        print(summary(results))
        print(f"The report, with curves, samples, diagrams and attention: {out / 'report.html'}")
