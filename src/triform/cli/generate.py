"""`triform generate`: continue a prompt, or answer it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .guiding import constraint_of, proposals_of, rate_of
from .models import MODEL, Precision, open_model, progress, texts_of

if TYPE_CHECKING:
    from triform.generate import Conversation, Generation, Sampling
    from triform.generate.fewshot import FewShot
    from triform.generate.speculative import Draft, Lookup

app = typer.Typer(add_completion=False)
_BATCH = 32
Search = Literal["greedy", "beam", "sampling", "contrastive"]
EarlyStopping = Literal["true", "false", "never"]


@app.command(
    epilog='Examples: triform generate runs/storyteller/model 却说曹操 --temperature 0.8 --top-p 0.95 --seed 1 --stop "。"  ·  '
    'triform generate smollm2-135m-instruct "What is the capital of France?" --chat  ·  '
    "triform generate runs/translator/model 却说曹操 --num-beams 5 --length-penalty 0.6 --no-repeat-ngram 4  ·  "
    "triform generate smollm2-135m-instruct 菜很好吃 --examples reviews.jsonl --choice 好 --choice 坏"
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
    search: Annotated[
        Search | None, typer.Option(help="A search of ChatLM-mini-Chinese's, which the options given change.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the most probable token; left out: 1 with --top-k, --top-p, --min-p, --typical-p or --seed, else 0."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Choose among the k most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the most probable tokens that sum to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Leave out tokens below this share of the most probable one's probability.")] = 0.0,
    typical_p: Annotated[float, typer.Option(help="Choose among the tokens of most typical surprise that sum to this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes tokens less likely that were there before.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken from the score of each token that was generated.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for every time that it was.")] = 0.0,
    no_repeat_ngram: Annotated[int, typer.Option(help="No run of so many tokens occurs twice; 0: any may.")] = 0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=NUMBER", help="Added to a token's score; -inf bars it. May be given several times.")
    ] = None,
    bad_word: Annotated[list[str] | None, typer.Option(help="A text not to be written; may be given several times.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search: so many texts go on together.", show_default=False)] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With beams: above 0 favours long texts, below 0 short ones; left out: 1.", show_default=False)
    ] = None,
    early_stopping: Annotated[
        EarlyStopping | None,
        typer.Option(help="With beams: stop once so many texts have ended; left out: not while one can become better.", show_default=False),
    ] = None,
    num_return_sequences: Annotated[
        int | None, typer.Option(help="With beams: print so many texts a prompt; left out: the best.", show_default=False)
    ] = None,
    num_beam_groups: Annotated[
        int | None, typer.Option(help="With beams: they go on in so many groups, which differ by --diversity-penalty.", show_default=False)
    ] = None,
    diversity_penalty: Annotated[
        float | None,
        typer.Option(help="With groups of beams: taken from a token's score for each group before that chose it.", show_default=False),
    ] = None,
    penalty_alpha: Annotated[
        float | None, typer.Option(help="Contrastive search: how much likeness to what was said counts; takes --top-k.", show_default=False)
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    json_schema: Annotated[str | None, typer.Option(help="The text is JSON by this schema: a file, or the schema itself.")] = None,
    regex: Annotated[str | None, typer.Option(help="The whole text is matched by this regular expression.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="The text is this, or another given so.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help='Show these first: lines of {"input": …, "output": …}, or .tsv; a prompt is the next input, --system the task.'),
    ] = None,
    draft: Annotated[str | None, typer.Option(metavar="MODEL", help="A small model with the same tokens proposes several.")] = None,
    lookup: Annotated[
        int | None, typer.Option(help="Propose so many tokens from where the text was like this before.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the random choices repeatable; prompt i uses seed + i.")] = None,
    top_log_probs: Annotated[int, typer.Option(help="With --json: tell so many of the most probable tokens at each step.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="How the weights are kept; auto: as they are.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue each prompt with a decoder-only model, or answer it with an encoder-decoder."""
    from triform.generate import Sampling
    from triform.generate.fewshot import FewShot

    beams: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty, "num_return_sequences": num_return_sequences}
    beams |= {"num_beam_groups": num_beam_groups, "diversity_penalty": diversity_penalty}
    beams["early_stopping"] = {None: None, "true": True, "false": False, "never": "never"}[early_stopping]
    by_chance = top_k or top_p != 1 or min_p or typical_p != 1 or seed is not None
    if temperature is None:
        temperature = 1.0 if by_chance and search is None and penalty_alpha is None else 0.0
    how = Sampling(
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, search=search, temperature=temperature,
        top_k=top_k if penalty_alpha is None else 0, top_p=top_p, min_p=min_p, typical_p=typical_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, no_repeat_ngram=no_repeat_ngram,
        constraint=constraint_of(json_schema, regex, choice or []),
        logit_bias=_biases(logit_bias or []), bad_words=tuple(bad_word or ()), stop=tuple(stop or ()), seed=seed,
        top_log_probs=top_log_probs,
    )  # fmt: skip
    sampling = _searched(how, search, {name: value for name, value in beams.items() if value is not None}, (penalty_alpha, top_k))
    if top_log_probs and not as_json:
        raise ValueError("--top-log-probs: expected --json beside it, where they are told")
    if system is not None and not chat and examples is None:
        raise ValueError("--system: expected --chat or --examples beside it, as only they have a place for it")
    task = None if examples is None else FewShot.read(examples, system or "")
    sampling = sampling if task is None else task.sampling(sampling, chat=chat)
    texts = texts_of(prompts)
    model, tokenizer = open_model(name, dtype)
    proposals = proposals_of(draft, lookup)
    continues = model.config.form == "decoder-only" and not chat and task is None
    asked: Sequence[str | Conversation] = [_conversation(text, system) for text in texts] if chat else texts
    if task is not None:
        asked = [task.conversation(text) if chat else task.prompt(text) for text in texts]
    several = num_return_sequences or 1
    streams = len(texts) == several == 1 and not as_json and task is None
    if streams:
        found = _stream(model, tokenizer, asked[0], sampling, texts[0] if continues else "", proposals)
    else:
        found = _all(model, tokenizer, asked, sampling, proposals)
    if proposals is not None:
        print(f"triform: {rate_of(found)}", file=sys.stderr)
    if not streams:
        _tell([text for text in texts for _ in range(several)], found, task=task, as_json=as_json, continues=continues)


def _tell(texts: list[str], found: list[Generation], *, task: FewShot | None, as_json: bool, continues: bool) -> None:
    """Print what was generated, as JSON, as answers to examples, or as texts, after those that they continue."""
    if as_json:
        rows: list[dict[str, Any]] = [{"prompt": text} | asdict(one) for text, one in zip(texts, found, strict=True)]
        if task is not None:
            rows = [row | {"answer": task.parse(row["text"])} for row in rows]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    elif task is not None:
        print("\n".join(one.text.strip() for one in found))
    else:
        print(("\n\n" if continues else "\n").join((text if continues else "") + one.text for text, one in zip(texts, found, strict=True)))


def _biases(pairs: Sequence[str]) -> dict[int, float]:
    found = {}
    for pair in pairs:
        token, _, number = pair.partition("=")
        try:
            found[int(token)] = float(number)
        except ValueError:
            raise ValueError(f"--logit-bias: expected a token's id and a number, such as 198=-2.5, got {pair!r}") from None
    return found


def _searched(sampling: Sampling, name: str | None, beams: dict[str, Any], contrast: tuple[float | None, int]) -> Sampling:
    """The sampling with the beams or the contrastive search that the options ask for."""
    from triform.generate import Beams, Contrastive

    alpha, top_k = contrast
    base = sampling.search
    if beams:
        if name not in (None, "beam") or alpha is not None:
            raise ValueError(f"--{next(iter(beams)).replace('_', '-')}: expected beams, and not another search beside them")
        if base is None and "num_beams" not in beams:
            raise ValueError(f"--{next(iter(beams)).replace('_', '-')}: expected --num-beams or --search beam beside it")
        return replace(sampling, search=replace(base if isinstance(base, Beams) else Beams(), **beams))
    if alpha is None:
        return sampling
    if name not in (None, "contrastive"):
        raise ValueError(f"--penalty-alpha: expected contrastive search, got --search {name}")
    base = base if isinstance(base, Contrastive) else Contrastive()
    return replace(sampling, search=replace(base, penalty_alpha=alpha, top_k=top_k or base.top_k))


def _conversation(text: str, system: str | None) -> Conversation:
    from triform.text.training import without_surrogates

    told = [] if system is None else [{"role": "system", "content": without_surrogates(system)}]
    return [*told, {"role": "user", "content": text}]


def _stream(
    model: Any, tokenizer: Any, prompt: str | Conversation, sampling: Sampling, before: str, proposals: Draft | Lookup | None
) -> list[Generation]:
    from triform.generate import generate

    lead = [before]

    def show(_: int, piece: str) -> None:
        print("".join(lead) + piece, end="", flush=True)
        lead.clear()

    found = generate(model, tokenizer, [prompt], sampling, on_text=show, speculate=proposals)
    print("".join(lead))
    return found


def _all(
    model: Any, tokenizer: Any, prompts: Sequence[str | Conversation], sampling: Sampling, proposals: Draft | Lookup | None
) -> list[Generation]:
    from triform.generate import generate

    seeds = sampling.seeds(len(prompts))
    found: list[Generation] = []
    with progress(len(prompts), "prompts") as done:
        for at in range(0, len(prompts), _BATCH):
            some = prompts[at : at + _BATCH]
            how = replace(sampling, seed=tuple(seeds[at : at + len(some)]))
            found += generate(model, tokenizer, some, how, speculate=proposals, batch_size=_BATCH)
            done(at + len(some))
    return found
