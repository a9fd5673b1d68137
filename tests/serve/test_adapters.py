"""Adapters of one model, served as models of their own from its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from served import chat_tokenizer, disturbed, serving

from triform import config, generate, hub
from triform.generate import Sampling
from triform.nn.adapter import adapter_names, adapter_parts, add_adapter, remove_adapter
from triform.serve import Writer, open_models

ASK: list[Any] = [{"role": "user", "content": "却说曹操"}]
HOW: dict[str, Any] = {"slots": 4, "capacity": 128}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and the adapters `formal` and `terse` of it."""
    root = tmp_path_factory.mktemp("served")
    tokenizer = chat_tokenizer()
    attention = config.Attention(heads=2, kv_heads=1, mask="causal", position=config.Rotary(), bias="none")
    block = config.Block(
        attention=attention, feed_forward=config.FeedForward(hidden=48, activation="silu", gated=True, bias=False), norm=config.RMSNorm()
    )
    stack = config.Stack(width=24, depth=2, input=config.Tokens(vocab_size=tokenizer.vocab_size), pattern=(block,), norm=config.RMSNorm())
    model = disturbed(config.Transformer(decoder=stack, head=config.LanguageModel(tied=False)))
    hub.save(model, tokenizer, root / "base")
    for seed, name in enumerate(("formal", "terse")):
        add_adapter(model, config.Adapter(rank=3, kind="dora" if seed else "lora"), seed=seed)
        with torch.no_grad():
            for part in adapter_parts(model).values():
                part.lora_b.normal_(0, 0.4, generator=torch.Generator().manual_seed(seed))
        hub.save_adapter(model, tokenizer, root / name, root / "base")
        remove_adapter(model)
    return root


def said(folder: Path) -> str:
    """What the model in a folder answers by itself."""
    model, tokenizer = hub.load(folder)
    return generate.generate(model, tokenizer, [ASK], Sampling(max_new_tokens=8))[0].text


def test_adapters_of_a_served_model_hang_on_it(folders: Path) -> None:
    models = open_models([(None, str(folders / "formal")), ("plain", str(folders / "base")), ("short", str(folders / "terse"))], **HOW)
    assert [model.name for model in models] == ["formal", "plain", "short"]
    formal, plain, short = (model for model in models if isinstance(model, Writer))
    assert formal.engine is plain.engine is short.engine
    assert adapter_names(plain.model) == ["formal", "short"]
    with serving(*models) as running:
        client = running.client()
        answers = {
            name: client.chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=8).choices[0].message.content
            for name in ("formal", "plain", "short")
        }
        assert {model.id: getattr(model, "parent", None) for model in client.models.list()} == {
            "formal": "plain", "plain": None, "short": "plain",
        }  # fmt: skip
    assert answers == {"formal": said(folders / "formal"), "plain": said(folders / "base"), "short": said(folders / "terse")}
    assert len(set(answers.values())) == 3


def test_an_adapter_alone_is_in_its_model_s_weights_and_two_share_a_base(folders: Path) -> None:
    (alone,) = open_models([(None, str(folders / "formal"))], **HOW)
    assert isinstance(alone, Writer)
    assert alone.adapter is None
    alone.close()
    one, other = open_models([(None, str(folders / "formal")), (None, str(folders / "terse"))], **HOW)
    assert isinstance(one, Writer)
    assert isinstance(other, Writer)
    assert one.engine is other.engine
    assert (one.adapter, other.adapter) == ("formal", "terse")
    one.close()
