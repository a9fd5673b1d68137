"""`triform generate`: continue a prompt, or answer it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import open_model, progress, texts_of

if TYPE_CHECKING:
    from triform.generate import Generation, Sampling

app = typer.Typer(add_completion=False)
_BATCH = 32


@app.command(epilog='Example: triform generate runs/storyteller/model 却说曹操 --temperature 0.8 --top-p 0.95 --seed 1 --stop "。"')
def generate(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder with a model that has a decoder.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help='Texts to continue or answer; "-" reads them, one a line.')],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most probable token; left out: 1 with --top-k, --top-p, --min-p or --seed, else 0.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Choose among the k most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the most probable tokens that sum to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Leave out tokens below this share of the most probable one's probability.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes tokens less likely that were there before.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the random choices repeatable; prompt i uses seed + i.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue each prompt with a decoder-only model, or answer it with an encoder-decoder."""
    from triform.generate import Sampling

    if temperature is None:
        temperature = 1.0 if top_k or top_p != 1 or min_p or seed is not None else 0.0
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=tuple(stop or ()), seed=seed,
    )  # fmt: skip
    texts = texts_of(prompts)
    model, tokenizer = open_model(folder)
    continues = model.config.form == "decoder-only"
    if len(texts) == 1 and not as_json:
        _stream(model, tokenizer, texts[0], sampling, continues)
        return
    found = _all(model, tokenizer, texts, sampling)
    if as_json:
        rows = [{"prompt": text} | asdict(one) for text, one in zip(texts, found, strict=True)]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    print(("\n\n" if continues else "\n").join((text if continues else "") + one.text for text, one in zip(texts, found, strict=True)))


def _stream(model: Any, tokenizer: Any, text: str, sampling: Sampling, continues: bool) -> None:
    from triform.generate import generate

    lead = [text] if continues else []

    def show(_: int, piece: str) -> None:
        print("".join(lead) + piece, end="", flush=True)
        lead.clear()

    generate(model, tokenizer, text, sampling, on_text=show)
    print("".join(lead))


def _all(model: Any, tokenizer: Any, texts: list[str], sampling: Sampling) -> list[Generation]:
    from triform.generate import generate

    seeds = sampling.seeds(len(texts))
    found: list[Generation] = []
    with progress(len(texts), "prompts") as done:
        for at in range(0, len(texts), _BATCH):
            some = texts[at : at + _BATCH]
            found += generate(model, tokenizer, some, replace(sampling, seed=tuple(seeds[at : at + len(some)])), batch_size=_BATCH)
            done(len(found))
    return found
