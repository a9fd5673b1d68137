"""`triform serve`: models behind HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .models import MODEL, loading

if TYPE_CHECKING:
    from triform.generate.content_filter import ContentFilter
    from triform.serve.models import Model

app = typer.Typer(add_completion=False)
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@app.command(
    epilog="Examples: triform serve smollm2-135m-instruct  ·  "
    "triform serve story=runs/storyteller/model critic=runs/critic/model --moderation critic --port 8080 --keys keys.txt"
)
def serve(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL", help=f"{MODEL}. NAME is what requests call it by.")],
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at; 0: any that is free.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, one a line; TRIFORM_API_KEYS adds more. Without any, none is asked for.")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may ask, such as https://example.org; may be given several times.")
    ] = None,
    moderation: Annotated[
        str | None, typer.Option(help="The classifier that /v1/moderations asks: the name of one served, or its path.")
    ] = None,
    guard: Annotated[
        str | None, typer.Option(help="A classifier's path or name; what it gives a label but its first is refused, asked or answered.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "int4"], typer.Option(help="How the weights of a model that generates are kept.")
    ] = "auto",
    slots: Annotated[int, typer.Option(help="Answers of a model that are written at once.")] = 16,
    capacity: Annotated[
        int | None, typer.Option(help="Tokens of a prompt and its answer; left out: as many as the model has positions, at most 4096.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB for the keys and values of a model's answers; left out: a quarter of the machine's memory.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests of a model that may wait; one more gets 429.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(help="The longest prompt.")] = 32_768,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 8_192,
    max_body: Annotated[float, typer.Option(help="The longest request, in MiB.")] = 4.0,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.")] = 300.0,
    drain: Annotated[float, typer.Option(help="Seconds that running answers get to finish when the server is stopped.")] = 30.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
) -> None:
    """Serve models over HTTP with OpenAI's API, and a page to use them at /. Logs are JSON lines on standard error."""
    try:
        from triform import serve as server
        from triform.serve.observe import log_to_stderr
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"):
            raise
        raise ValueError('serving needs FastAPI and uvicorn: pip install "triform[serve]"') from None

    found = server.read_keys(keys)
    settings = server.Settings(
        keys=found, origins=tuple(cors or ()), hosts=() if found or host not in ("127.0.0.1", "localhost", "::1") else _LOOPBACK,
        body_bytes=int(max_body * 2**20), prompt_tokens=max_prompt_tokens, new_tokens=max_new_tokens, deadline=deadline, drain=drain,
        log_prompts=log_prompts,
    )  # fmt: skip
    listening = server.listen(host, port)
    log_to_stderr()
    cache = None if memory is None else int(memory * 2**30)
    opened = _open(models, moderation, dtype=dtype, queue=queue, slots=slots, capacity=capacity, memory=cache)
    application = server.create_app(server.Models(*opened, guard=_guard(guard)), settings)
    if not found and host not in ("127.0.0.1", "localhost", "::1"):
        print("triform: anybody who reaches this address may use the models; --keys asks for API keys", file=sys.stderr)
    server.run(application, listening, lambda address: _say(address, [model.name for model in opened[0]]))


def _open(models: list[str], moderation: str | None, **engine: Any) -> tuple[list[Model], str | None]:
    """The models, and the name of the one that moderates."""
    from triform import hub
    from triform.serve import open_model, open_models

    opened = open_models([_split(model) for model in models], loading=loading, **engine)
    if moderation is None or moderation in [model.name for model in opened]:
        return opened, moderation
    with loading(hub.locate(moderation)):
        opened.append(open_model(moderation, **engine))
    return opened, opened[-1].name


def _guard(place: str | None) -> ContentFilter | None:
    from triform import hub
    from triform.generate.content_filter import ContentFilter

    if place is None:
        return None
    with loading(hub.locate(place)):
        return ContentFilter.open(place)


def _split(model: str) -> tuple[str | None, str]:
    """A model's name, None where it was not said, and its place."""
    name, equals, place = model.partition("=")
    if not equals or Path(model).exists():
        return None, model
    if not name or not place or "/" in name:
        raise ValueError(f"{model}: expected NAME=MODEL or a model's path or name")
    return name, place


def _say(address: str, names: list[str]) -> None:
    print(f"{', '.join(names)} at {address}  (the page), {address}/v1  (OpenAI's API), {address}/docs; Ctrl-C ends", flush=True)
