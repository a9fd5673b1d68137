"""`triform doctor MODEL`: each check finds what is sick in a model's folder, and is content with what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import LINES
from safetensors.torch import load_file, save_file

from triform import config, hub, nn
from triform.doctor import examine_model
from triform.doctor.findings import Finding
from triform.doctor.model import _TEXTS
from triform.nn import IGNORE
from triform.text import train_tokenizer
from triform.text.templates import TEMPLATES

CHATML = "{{ bos_token }}" + TEMPLATES["chatml"]
ENDLESS = CHATML.replace("'<|im_end|>'", "''")


def _decoder(vocab_size: int, **fields: Any) -> config.Transformer:
    block = config.Block(
        attention=config.Attention(heads=2, mask="causal", bias="none", position=config.Rotary()),
        feed_forward=config.FeedForward(hidden=64, activation="silu", gated=True, bias=False), norm=config.RMSNorm(),
    )  # fmt: skip
    stack = config.Stack(width=32, depth=1, input=config.Tokens(vocab_size=vocab_size), pattern=(block,), norm=config.RMSNorm())
    return config.Transformer(decoder=stack, **({"head": config.LanguageModel()} | fields))


def _taught(model: Any, rows: list[list[int]]) -> None:
    """Let a model learn a little of some texts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for ids in (torch.tensor([row]) for row in rows):
            labels = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORE)], 1)
            loss = model.language_model_loss(model(ids, logits=False).hidden, labels) / ids.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that chats, in the public layout, and that has seen the texts it is tried on."""
    folder = tmp_path_factory.mktemp("model") / "healthy"
    tokenizer = train_tokenizer([*LINES, *_TEXTS, "user assistant system"], kind="characters", min_frequency=1)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = type(tokenizer)(tokenizer.backend, tokenizer.roles)
    tokenizer.chat_template = CHATML
    tokenizer.ends = [tokenizer.eos or 0, tokenizer.id("<|im_end|>") or 0]
    model = nn.build(_decoder(tokenizer.vocab_size), seed=0)
    _taught(model, [tokenizer.encode(text) for text in _TEXTS])
    hub.save(model, tokenizer, folder)
    return folder


def findings(folder: Path) -> dict[str, Finding]:
    """The findings by their checks, the worst of each."""
    order = ("fine", "note", "warning", "error")
    return {each.check: each for each in sorted(examine_model(folder).findings, key=lambda one: order.index(one.severity))}


def test_a_healthy_model(healthy: Path) -> None:
    found = findings(healthy)
    assert [each.line for each in found.values() if each.severity != "fine"] == []
    assert found.keys() == {"weights", "tied weights", "token table", "special ids", "generation config", "chat template", "a pass"}
    assert examine_model(healthy).exit_code == 0


Change = Callable[[Path], None]


def weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change a tensor of the folder's weights, found by the end of its name."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (own,) = [key for key in tensors if key.endswith(name)]
        save_file(tensors | {own: change(tensors[own].clone())}, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def setting(file: str, **fields: Any) -> Change:
    """Change fields of a JSON file of the folder."""

    def changed(folder: Path) -> None:
        path = folder / file
        data = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(data | fields), "utf-8")

    return changed


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content, "utf-8") and None


def _spoilt(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return change


def _stop_row_faint(folder: Path) -> None:
    tokenizer = hub.Checkpoint.open(folder).tokenizer()
    assert tokenizer is not None
    row = tokenizer.id("<|im_end|>")

    def change(table: torch.Tensor) -> torch.Tensor:
        table[row] = 0
        return table

    weight("embed_tokens.weight", change)(folder)


def _without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(key for key in tensors if key.endswith("down_proj.weight"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _small_table(folder: Path) -> None:
    _, tokenizer = hub.load(folder)
    hub.save(nn.build(_decoder(20), seed=0), None, folder)
    tokenizer.save(folder)  # type: ignore[union-attr]


def _two_alike(folder: Path) -> None:
    model, tokenizer = hub.load(folder)
    other = nn.build(_decoder(tokenizer.vocab_size, head=config.LanguageModel(tied=False)), seed=0)  # type: ignore[union-attr]
    other.load_state_dict(model.state_dict() | {"head.weight": model.token_table}, strict=False)
    hub.save(other, tokenizer, folder)


def _untrained(folder: Path) -> None:
    _, tokenizer = hub.load(folder)
    hub.save(nn.build(_decoder(tokenizer.vocab_size), seed=0), tokenizer, folder)  # type: ignore[union-attr]


def _spare(folder: Path) -> None:
    _, tokenizer = hub.load(folder)
    hub.save(nn.build(_decoder(2 * tokenizer.vocab_size + 300), seed=0), tokenizer, folder)  # type: ignore[union-attr]


SICK: list[tuple[str, str, Change, str]] = [
    ("weights", "error", weight("q_proj.weight", _spoilt(float("nan"))), "q_proj.weight (1 of 1,024)"),
    ("weights", "error", weight("q_proj.weight", _spoilt(float("inf"))), "not all weights are numbers"),
    ("weights", "warning", weight("up_proj.weight", torch.zeros_like), "zero throughout"),
    ("weights", "error", _lacking, "lacks"),
    ("tied weights", "note", _two_alike, "equals the token table"),
    ("token table", "error", _small_table, "the token table 20 rows"),
    ("token table", "warning", _stop_row_faint, "'<|im_end|>'"),
    ("token table", "note", _spare, "have no token"),
    ("tokenizer", "error", _without("tokenizer.json", "tokenizer_config.json"), "there is none"),
    ("tokenizer", "error", text("tokenizer.json", "{"), "tokenizer.json"),
    ("special ids", "error", setting("config.json", eos_token_id=9999), "eos_token_id 9999"),
    ("special ids", "warning", setting("config.json", eos_token_id=20), "the tokenizer's eos is"),
    ("special ids", "note", setting("generation_config.json", pad_token_id=20), "the tokenizer's pad is"),
    ("generation config", "error", setting("generation_config.json", top_p=1.5, temperature=-1), "temperature -1"),
    ("generation config", "note", setting("generation_config.json", temperature=0.6, do_sample=False), "do_sample to false"),
    ("chat template", "error", text("chat_template.jinja", CHATML.replace("im_end", "eot")), "<|eot|>"),
    ("chat template", "error", text("chat_template.jinja", "{{ messages.nothing.at_all }}"), "fails"),
    ("chat template", "error", text("chat_template.jinja", ENDLESS), "the assistant's turn ends with"),
    ("chat template", "note", text("chat_template.jinja", TEMPLATES["chatml"]), "a conversation begins without"),
    ("chat template", "error", text("chat_template.jinja", "{{ bos_token }}" + CHATML), "[BOS] twice"),
    ("chat template", "warning", setting("tokenizer_config.json", chat_template="{{ messages }}"), "different templates"),
    ("length", "warning", setting("tokenizer_config.json", model_max_length=4096), "learned 64 positions"),
    ("a pass", "error", weight("q_proj.weight", _spoilt(float("nan"))), "is not all numbers"),
    ("a pass", "warning", _untrained, "knowing nothing is"),
]


@pytest.mark.parametrize(("check", "severity", "change", "says"), SICK, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(SICK)])
def test_what_is_sick_is_found(check: str, severity: str, change: Change, says: str, healthy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sick"
    shutil.copytree(healthy, folder)
    if check == "length":
        _learned(folder)
    change(folder)
    found = findings(folder)[check]
    assert found.severity == severity, found.line
    assert says in found.says
    assert found.advice


def _learned(folder: Path) -> None:
    """A model with 64 learned positions in the place of the folder's."""
    _, tokenizer = hub.load(folder)
    stack = config.Stack(
        width=32, depth=1, input=config.Tokens(vocab_size=tokenizer.vocab_size, position=config.Learned(length=64)),  # type: ignore[union-attr]
        pattern=(config.Block(attention=config.Attention(heads=2, mask="causal"), feed_forward=config.FeedForward(hidden=32)),),
    )  # fmt: skip
    hub.save(nn.build(config.Transformer(decoder=stack, head=config.LanguageModel()), seed=0), tokenizer, folder)


def test_an_adapter_is_examined_with_the_model_beneath(healthy: Path, tmp_path: Path) -> None:
    model, tokenizer = hub.load(healthy)
    nn.add_adapter(model, config.Adapter(rank=2), seed=0)
    hub.save_adapter(model, tokenizer, tmp_path / "adapter", str(healthy))
    assert examine_model(tmp_path / "adapter").count("error") == 0
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(key for key in tensors if "down_proj" in key and "lora_B" in key)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    found = findings(tmp_path / "adapter")["weights"]
    assert (found.severity, "(64 of 2,048)" in found.says) == ("error", True), found.says


def test_a_judge_and_its_labels(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(LINES, kind="wordpiece", vocab_size=261, min_frequency=1)
    block = config.Block(attention=config.Attention(heads=2), feed_forward=config.FeedForward(hidden=32))
    stack = config.Stack(width=32, depth=1, input=config.Tokens(vocab_size=261), pattern=(block,))
    model = nn.build(config.Transformer(encoder=stack, head=config.Classify(labels=3)), seed=0)
    for labels, severity in ((["a", "b", "c"], "fine"), (["a", "b"], "error"), ([], "note")):
        hub.save(model, tokenizer, tmp_path / severity, {"labels": labels} if labels else {})
        assert findings(tmp_path / severity)["labels"].severity == severity
        assert findings(tmp_path / severity)["a pass"].severity == "fine"


def _public(folder: Path, kind: str, model_type: str, **fields: Any) -> None:
    """A small checkpoint of a public family with a tokenizer of our own kinds."""
    tokenizer = train_tokenizer(LINES, kind=kind, vocab_size=261, min_frequency=1)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    settings = size | {"model_type": model_type, "vocab_size": tokenizer.vocab_size} | fields
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    spec, family = hub.read_config(settings)
    save_file(hub.export_weights(nn.build(spec, seed=0), family), folder / "model.safetensors", metadata={"format": "pt"})


def test_the_frame_of_a_family(tmp_path: Path) -> None:
    bert = {"architectures": ["BertForMaskedLM"], "type_vocab_size": 2, "pad_token_id": 0}
    _public(tmp_path / "bert", "wordpiece", "bert", **bert)
    assert findings(tmp_path / "bert")["frame"].severity == "fine"
    gemma = {"num_key_value_heads": 2, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "sliding_window": 16}
    _public(tmp_path / "gemma", "wordpiece", "gemma3_text", **gemma)
    found = findings(tmp_path / "gemma")["frame"]
    assert (found.severity, "was trained with [BOS] and nothing" in found.says) == ("error", True), found.says
    roberta = {"architectures": ["RobertaForMaskedLM"], "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    for pad, severity in ((0, "fine"), (1, "error")):
        _public(tmp_path / f"roberta{pad}", "wordpiece", "roberta", pad_token_id=pad, **roberta)
        assert findings(tmp_path / f"roberta{pad}")["frame"].severity == severity


def test_what_is_no_model_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model's folder"):
        examine_model(tmp_path)
