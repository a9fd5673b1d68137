"""The command line. Each module here is one command: argument parsing and printing, nothing else.

A command's module is imported only when it is called, so that `triform --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

# command: (module of this package that holds a typer app named `app`, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Train a storyteller, a critic and a translator from nothing, and show them."),
    "inspect": ("inspect", "Show what a model is made of, or draw it."),
    "presets": ("presets", "List the models known by name."),
    "pull": ("pull", "Fetch a model by its name, or list the names."),
    "data": ("data", "Named data: list it, fetch it, look at it; prepare a recipe's data."),
    "plan": ("plan", "What a model will cost, before the first step; the best model for a budget."),
    "train": ("train", "Train a model from a recipe."),
    "doctor": ("doctor", "Look for what would spoil a run, or a model's answers."),
    "runs": ("runs", "List training runs, or compare them."),
    "tokenizer": ("tokenizer", "Train a tokenizer, look at what it makes of text, encode text."),
    "generate": ("generate", "Continue a prompt, or answer it."),
    "fill": ("fill", "Fill the masks of a text."),
    "chat": ("chat", "Talk with a model in the terminal."),
    "classify": ("classify", "Judge texts."),
    "tag": ("tag", "Name the parts of texts: people, places, words."),
    "answer": ("answer", "Answer questions from a passage."),
    "embed": ("embed", "Compare texts by their vectors."),
    "eval": ("eval", "Measure models by tasks, and compare two."),
    "serve": ("serve", "Serve models over HTTP with OpenAI's API, and a page to use them."),
    "convert": ("convert", "Write a model in another format."),
}


def _help() -> str:
    width = max(map(len, COMMANDS), default=0)
    rows = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"""Usage: triform COMMAND [OPTIONS]

Build a Transformer of your own, from raw text to a model that runs.

Commands:
{rows}

Options:
  --version  Print the version.
  --help     Print this page; `triform COMMAND --help` prints a command's, with an example.

Example: triform inspect bert-base gpt2 --diagram both.svg"""


def _fail(message: object) -> int:
    print(f"triform: {message}", file=sys.stderr)
    return 2


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 2 after a mistake of the user's (one line says which), 130 when interrupted."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"triform {version('triform')}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        return _fail(f"no command is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; `triform --help` lists them"))
    try:
        app = import_module(f"triform.cli.{COMMANDS[name][0]}").app
        return app(rest, prog_name=f"triform {name}", standalone_mode=False) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("TRIFORM_TRACEBACK"):
            raise
        return _fail(error)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "triform":
            raise
        return _fail(f"this needs the package {error.name!r}, which is not installed (pip install {error.name})")
    except KeyboardInterrupt:
        print("triform: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # a click usage error
            return _fail(f"{error.format_message()} (`triform {name} --help` shows the usage)")
        if type(error).__name__ == "Abort":
            return 130
        if type(error).__name__ == "Exit":
            return int(getattr(error, "exit_code", 0))
        raise


def main() -> None:
    """The entry point of the `triform` command."""
    sys.exit(run(sys.argv[1:]))
