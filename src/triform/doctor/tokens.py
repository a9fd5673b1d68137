"""The tokenizer of a model's folder and what is said of it there: special ids, generation settings, the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from triform import config, hub
from triform.text import Tokenizer, chat, framing

from .findings import Finding, listed

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_ROLE_OF = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start_of_turn|end_of_turn|bos|eos|s|/s)>|\[/?INST\]|<<?/?SYS>>?")
_COUNTED_FROM_PADDING = ("roberta", "roberta-prelayernorm")
_FRAMES: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("bert", "distilbert", "roberta", "roberta-prelayernorm", "bart"): (("cls",), ("sep",)),
    ("gemma3_text",): (("bos",), ()),
    ("t5", "mt5", "switch_transformers", "marian", "pegasus"): ((), ("eos",)),
}
"""By the model_types of a family: the roles of the tokens before a text and after it."""
_TALK = ({"role": "user", "content": "你好，hello"}, {"role": "assistant", "content": "好的，fine"})
_AGAIN = ({"role": "user", "content": "再说一次"}, {"role": "assistant", "content": "再见"})
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 10, "0 to 10"), "top_p": (1e-9, 1, "above 0 and at most 1"), "top_k": (0, float("inf"), "0 or more"),
    "min_p": (0, 1, "0 to 1"), "repetition_penalty": (1e-9, 10, "above 0"), "max_new_tokens": (1, float("inf"), "1 or more"),
}  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file. Raises ValueError where it is something else."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds {type(found).__name__}, expected an object")
    return found


def check_ids(folder: Path, tokenizer: Tokenizer, writes: bool) -> Iterator[Finding]:
    """The special ids of config.json and generation_config.json are the tokenizer's."""
    bad = False
    for name in ("config.json", "generation_config.json"):
        try:
            said = _read(folder / name)
        except ValueError as error:
            bad = True
            yield Finding("special ids", "error", str(error), "write it again, or take it away")
            continue
        for key in _IDS:
            for finding in _id_findings(name, key, said.get(key), tokenizer):
                bad = True
                yield finding
    if not bad:
        stops = f"; generation stops at {', '.join(tokenizer.tokens(tokenizer.ends)) or 'nothing'}" if writes else ""
        yield Finding("special ids", "fine", f"they are the tokenizer's{stops}")


def _id_findings(file: str, key: str, value: Any, tokenizer: Tokenizer) -> Iterator[Finding]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    known = [i for i in ids if isinstance(i, int) and 0 <= i < tokenizer.vocab_size]
    if len(known) < len(ids):
        outside = listed([i for i in ids if i not in known])
        says = f"{file} has {key} {outside}, and the tokenizer's ids are 0 to {tokenizer.vocab_size - 1}"
        yield Finding("special ids", "error", says, f"set {key} to a token of this tokenizer, or take the model's own tokenizer")
        return
    role = _ROLE_OF.get(key)
    own = None if role is None else getattr(tokenizer, role)
    if own is None or not known or own in known or (role == "eos" and set(known) & set(tokenizer.ends)):
        return
    names = listed(tokenizer.tokens(known))
    says = f"{file} has {key} {listed(known)} ({names}), and the tokenizer's {role} is {own} ({tokenizer.tokens([own])[0]})"
    severity = "warning" if role == "eos" else "note"
    yield Finding("special ids", severity, says, "make the two agree: other programs may heed the other one")  # type: ignore[arg-type]


def check_family(folder: Path, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Texts are framed as the model's family has it, where it has a fixed frame, and padding is what it counts positions from."""
    said = _read(folder / "config.json")
    family = str(said.get("model_type", "")).lower()
    wanted = next((roles for names, roles in _FRAMES.items() if family in names), None)
    if wanted is None:
        return
    frame = framing.template(tokenizer)
    expected = tuple([i for i in (getattr(tokenizer, role) for role in side) if i is not None] for side in wanted)
    names = [" ".join(tokenizer.tokens(side)) or "nothing" for side in (*frame, *expected)]
    if tuple(frame) != expected:
        says = f"a text stands between {names[0]} and {names[1]}, and a {family} model was trained with {names[2]} and {names[3]}"
        yield Finding("frame", "error", says, "take the family's own tokenizer.json, whose post_processor writes them")
    elif family in _COUNTED_FROM_PADDING and tokenizer.pad is not None and said.get("pad_token_id", tokenizer.pad) != tokenizer.pad:
        says = f"{family} counts positions from config.json's pad_token_id {said['pad_token_id']}, and the tokenizer's is {tokenizer.pad}"
        yield Finding("frame", "error", says, "make the two agree, or every position is another than in training")
    else:
        yield Finding("frame", "fine", f"a text stands between {names[0]} and {names[1]}, as the {family} family has it")


def check_generation(folder: Path) -> Iterator[Finding]:
    """The settings of generation_config.json are ones that can be."""
    try:
        said = _read(folder / "generation_config.json")
    except ValueError:
        return  # said of its ids
    if not said:
        return
    wrong = [f"{name} {said[name]!r} (expected {what})" for name, (*ends, what) in _RANGES.items() if not _within(said.get(name), *ends)]
    if wrong:
        yield Finding("generation config", "error", f"generation_config.json has {listed(wrong)}", "set it to what can be, or leave it out")
    elif said.get("do_sample") is False and any(said.get(name) not in (None, 1, 1.0) for name in ("temperature", "top_p")):
        says = "it sets temperature or top_p, and do_sample to false, with which they do nothing"
        yield Finding("generation config", "note", says, "set do_sample to true, or leave them out")
    else:
        yield Finding("generation config", "fine", f"{len(said)} settings, all of which can be")


def _within(value: Any, low: float, high: float) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high)


def check_length(tokenizer: Tokenizer, spec: config.Model) -> Iterator[Finding]:
    """The tokenizer does not let through more tokens than there are positions."""
    for side in ("encoder", "decoder", "text"):
        read = getattr(getattr(spec, side, None), "input", None)
        place = read.position if isinstance(read, config.Tokens) else None
        if isinstance(place, config.Learned) and tokenizer.length is not None and tokenizer.length > place.length:
            says = f"the tokenizer says {tokenizer.length:,} tokens, and the {side} has learned {place.length:,} positions"
            yield Finding("length", "warning", says, f"set model_max_length to {place.length} in tokenizer_config.json")


def check_template(tokenizer: Tokenizer, writes: bool) -> Iterator[Finding]:
    """The chat template can be run, ends the assistant's turns with a token that stops, and shows which text is the assistant's."""
    source = tokenizer.chat_template
    if source is None:
        if writes:
            yield Finding("chat template", "fine", "none: the model goes on with texts and does not chat")
        return
    unknown = sorted({text for text in _CONTROL.findall(source) if tokenizer.id(text) is None})
    if unknown:
        advice = "add them to the tokenizer as special tokens and train them, or take the template of this model's family"
        says = f"it writes {listed(unknown)}, which the tokenizer has no token for and would spell out"
        yield Finding("chat template", "error", says, advice, {"unknown": unknown})
        return
    try:
        turns = chat.encode_turns(tokenizer, _TALK)
        prompt = tokenizer.encode_chat(_TALK[:1], generation_prompt=True)
    except ValueError as error:
        yield Finding("chat template", "error", str(error), "mend the template; `triform chat` reads conversations by it")
        return
    yield from _turns(tokenizer, turns, prompt)


def _turns(tokenizer: Tokenizer, turns: chat.EncodedChat, prompt: list[int]) -> Iterator[Finding]:
    if tokenizer.bos is not None and turns.ids[:2] == [tokenizer.bos] * 2:
        says = f"a conversation begins with {tokenizer.tokens([tokenizer.bos])[0]} twice"
        yield Finding("chat template", "error", says, "write it once in the template")
        return
    own = [i for i, assistant in zip(turns.ids, turns.assistant or [], strict=False) if assistant]
    if not set(own[-4:]) & set(tokenizer.ends):
        ends = listed(tokenizer.tokens(tokenizer.ends)) or "nothing"
        last = tokenizer.tokens(own[-1:]) if own else ["nothing"]
        says = f"the assistant's turn ends with {last[0]!r}, and generation stops at {ends}"
        advice = "put the end of a turn into generation_config.json's eos_token_id, and inside the template's {% generation %} block"
        yield Finding("chat template", "error", says, advice)
        return
    if turns.ids[: len(prompt)] != prompt:
        says = "a question is written otherwise when its answer follows than when it is asked for, so training differs from use"
        yield Finding("chat template", "warning", says, "let add_generation_prompt write what an assistant's message begins with")
        return
    opening = framing.opening(tokenizer)
    if opening and prompt[: len(opening)] != opening:
        says = f"the tokenizer's own template begins a text with {' '.join(tokenizer.tokens(opening))}, and a conversation begins without"
        yield Finding("chat template", "note", says, "begin the template with {{ bos_token }} if the model was trained so")
    try:
        chat.encode_turns(tokenizer, (*_TALK, *_AGAIN))
    except ValueError:
        says = "it writes earlier turns differently once others follow, so several turns cannot be trained on at once"
        advice = "put {% generation %} and {% endgeneration %} around what the assistant writes"
        yield Finding("chat template", "note", says, advice)
        return
    yield Finding("chat template", "fine", f"turns end with {tokenizer.tokens([next(i for i in reversed(own) if i in tokenizer.ends)])[0]}")


def check_written(folder: Path, tokenizer: Tokenizer) -> Iterator[Finding]:
    """A template that stands in two files is the same in both."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if not file.is_file() or not settings.is_file():
        return
    try:
        other = _read(settings).get("chat_template")
    except ValueError:
        return  # the tokenizer could not have been read then
    if isinstance(other, str) and other.strip() != file.read_text("utf-8").strip():
        says = "chat_template.jinja and tokenizer_config.json hold different templates; the first is used"
        yield Finding("chat template", "warning", says, "delete one: other programs may read the other")


def check_task(folder: Path, spec: config.Model) -> Iterator[Finding]:
    """A judge's labels are as many as its head judges."""
    head, labels = getattr(spec, "head", None), hub.task(folder).get("labels")
    if not isinstance(head, config.Classify | config.ClassifyTokens):
        return
    if isinstance(labels, (list, Mapping)) and len(labels) != head.labels:
        says = f"{len(labels)} labels are named, and the head judges {head.labels}"
        yield Finding("labels", "error", says, "name as many in config.json's id2label (task.json for Triform's own)")
    elif not labels:
        yield Finding("labels", "note", "its labels have no names", "name them in config.json's id2label, so that `triform classify` can")
    else:
        yield Finding("labels", "fine", f"{head.labels} labels, all named")
