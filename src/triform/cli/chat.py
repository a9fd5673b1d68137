"""`triform chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import MODEL, Precision, open_model

if TYPE_CHECKING:
    from triform.generate.chat import Chat, Reply

app = typer.Typer(add_completion=False)
_PROMPT, _MORE, _QUOTES = "› ", "… ", '"""'
_HELP = """/help             this list
/system [TEXT]    tell the model something before the conversation; without a text, nothing
/reset            forget the conversation
/retry            another answer to the last message
/undo             take the last message and its answer back
/save FILE        write the conversation as JSON
/load FILE        go on with one that was saved
/set [NAME=VALUE] change how answers are chosen, such as temperature=0.7; alone: show it
/exit             leave, as Ctrl-D does
Ctrl-C stops an answer. A message of several lines stands between lines of \"\"\", or has \\ at the end of each line but the last."""


@app.command(
    epilog='Examples: triform chat smollm2-135m-instruct --system "Answer in one sentence."  ·  '
    "echo 中国的首都是哪里？ | triform chat runs/assistant/model --temperature 0"
)
def chat(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: one with a decoder.")],
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Choose among the k most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the most probable tokens that sum to this probability.")] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes tokens less likely that were there before.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the random choices repeatable.")] = None,
    dtype: Annotated[Precision, typer.Option(help="How the weights are kept; auto: as they are.")] = "auto",
    guard: Annotated[
        str | None, typer.Option(help="A classifier's path or name; messages and answers that it gives a label but its first are refused.")
    ] = None,
) -> None:
    """Talk with a model; /help lists what can be said beside messages. Messages may also come from a pipe, one a line.

    A model without a chat template goes on with the text so far, or, where it has an encoder, answers each message by itself.
    """
    from triform.generate import Sampling
    from triform.generate.chat import Chat
    from triform.generate.content_filter import ContentFilter

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed
    )
    judge = None if guard is None else ContentFilter.open(guard)
    model, tokenizer = open_model(name, dtype)
    with Chat(model, tokenizer, sampling, system, guard=judge) as talk:
        if load is not None:
            talk.load(load)
        if sys.stdin.isatty():
            _note(f"{Path(name).name}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        _converse(talk)


def _converse(talk: Chat) -> None:
    read = _reader()
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            _note("\n/exit or Ctrl-D leaves")
            continue
        if text is None:
            return
        if not text.strip():
            continue
        try:
            if not text.startswith("/"):
                _show(lambda on_text, text=text: talk.ask(text, on_text))  # type: ignore[misc]
            elif _command(talk, text):
                return
        except KeyboardInterrupt:
            _note("(stopped)")
        except (ValueError, OSError) as error:
            if not sys.stdin.isatty():
                raise
            _note(f"triform: {error}")


def _reader() -> Callable[[], str | None]:
    """What reads a message, of one line or of several; None at the end."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # input() edits lines, and remembers them, where it is there
            import readline  # noqa: F401
        return lambda: _message(_line)
    return lambda: _message(_piped)


def _piped(prompt: str) -> str | None:
    line = sys.stdin.buffer.readline()
    try:
        return line.decode("utf-8").rstrip("\r\n") if line else None
    except UnicodeDecodeError:
        raise ValueError("standard input: expected text in UTF-8, got other bytes; convert it") from None


def _line(prompt: str) -> str | None:
    from triform.text.training import without_surrogates

    try:
        return without_surrogates(input(prompt))
    except EOFError:
        print()
        return None


def _message(line_of: Callable[[str], str | None]) -> str | None:
    first = line_of(_PROMPT)
    if first is None:
        return None
    lines = [first]
    if first.strip().startswith(_QUOTES):
        lines = [first.strip().removeprefix(_QUOTES)]
        while not lines[-1].endswith(_QUOTES) and (line := line_of(_MORE)) is not None:
            lines.append(line)
        return "\n".join(lines).removesuffix(_QUOTES).strip("\n")
    while lines[-1].endswith("\\") and (line := line_of(_MORE)) is not None:
        lines[-1] = lines[-1][:-1]
        lines.append(line)
    return "\n".join(lines)


def _command(talk: Chat, text: str) -> bool:
    """Carry out a command; whether it is to leave."""
    name, _, rest = text[1:].partition(" ")
    rest = rest.strip()
    match name:
        case "exit" | "quit" | "bye":
            return True
        case "help" | "?":
            print(_HELP)
        case "system":
            talk.tell(rest)
        case "reset":
            talk.reset()
        case "undo":
            talk.undo()
        case "retry":
            _show(talk.retry)
        case "save" | "load":
            if not rest:
                raise ValueError(f"/{name}: expected a file's name after it")
            (talk.save if name == "save" else talk.load)(Path(rest).expanduser())
            _note(f"{len(talk.messages)} messages {'written to' if name == 'save' else 'read from'} {rest}")
        case "set":
            _set(talk, rest)
        case _:
            raise ValueError(f"no command is named /{name}; /help lists them")
    return False


def _set(talk: Chat, changes: str) -> None:
    from triform.generate.chat import settings

    for change in changes.split():
        talk.set(change)
    if not changes:
        print("\n".join(f"{name}={value}" for name, value in settings(talk.sampling).items()))


def _show(answer: Callable[[Callable[[str], None]], Reply]) -> None:
    """Print an answer as it comes."""
    reply = answer(lambda piece: print(_printable(piece), end="", flush=True))
    print("" if reply.refused is None else f"(refused: {_printable(reply.refused)})")
    if reply.forgotten:
        _note(f"({reply.forgotten} messages at the beginning no longer fit and were not read)")
    if reply.finish_reason == "cancelled":
        _note("(stopped)")
    elif reply.finish_reason == "length":
        _note(f"(cut at {reply.tokens} tokens; /set max_new_tokens=… allows more)")


def _printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0))


def _note(text: str) -> None:
    """Say something beside the conversation, on a terminal in grey."""
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
