"""`triform generate`: continue a prompt, or answer it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import MODEL, open_model, progress, texts_of

if TYPE_CHECKING:
    from triform.generate import Conversation, Generation, Sampling

app = typer.Typer(add_completion=False)
_BATCH = 32


@app.command(
    epilog='Examples: triform generate runs/storyteller/model 却说曹操 --temperature 0.8 --top-p 0.95 --seed 1 --stop "。"  ·  '
    'triform generate smollm2-135m-instruct "What is the capital of France?" --chat'
)
def generate(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: one with a decoder.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help='Texts to continue or answer; "-" reads them, one a line.')],
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is a user's message, framed by the model's chat template; the answer is printed.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the model is told before the message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 128,
    min_new_tokens: Annotated[int, typer.Option(help="At least so many tokens.")] = 0,
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
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=tuple(stop or ()), seed=seed,
    )  # fmt: skip
    if system is not None and not chat:
        raise ValueError("--system: expected --chat beside it, as only a chat template has a place for it")
    texts = texts_of(prompts)
    model, tokenizer = open_model(name)
    continues = model.config.form == "decoder-only" and not chat
    asked = [_conversation(text, system) for text in texts] if chat else texts
    if len(texts) == 1 and not as_json:
        _stream(model, tokenizer, asked[0], sampling, texts[0] if continues else "")
        return
    found = _all(model, tokenizer, asked, sampling)
    if as_json:
        rows = [{"prompt": text} | asdict(one) for text, one in zip(texts, found, strict=True)]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    print(("\n\n" if continues else "\n").join((text if continues else "") + one.text for text, one in zip(texts, found, strict=True)))


def _conversation(text: str, system: str | None) -> Conversation:
    from triform.text.training import without_surrogates

    told = [] if system is None else [{"role": "system", "content": without_surrogates(system)}]
    return [*told, {"role": "user", "content": text}]


def _stream(model: Any, tokenizer: Any, prompt: str | Conversation, sampling: Sampling, before: str) -> None:
    from triform.generate import generate

    lead = [before]

    def show(_: int, piece: str) -> None:
        print("".join(lead) + piece, end="", flush=True)
        lead.clear()

    generate(model, tokenizer, [prompt], sampling, on_text=show)
    print("".join(lead))


def _all(model: Any, tokenizer: Any, prompts: Sequence[str | Conversation], sampling: Sampling) -> list[Generation]:
    from triform.generate import generate

    seeds = sampling.seeds(len(prompts))
    found: list[Generation] = []
    with progress(len(prompts), "prompts") as done:
        for at in range(0, len(prompts), _BATCH):
            some = prompts[at : at + _BATCH]
            found += generate(model, tokenizer, some, replace(sampling, seed=tuple(seeds[at : at + len(some)])), batch_size=_BATCH)
            done(len(found))
    return found
