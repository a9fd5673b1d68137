"""Adapters against Hugging Face's PEFT, on every family: either reads what the other wrote, and answers the same.

Stated: 1e-5 of the largest value (`compare.TOLERANCE`), with the adapter beside the weights and merged into them. Both sides
compute in fp64, as the deepest of these models make more than that of what fp32 rounds. Of the other members of a family the
tests are slow.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from parity.cases import CASES, reference
from parity.compare import TOLERANCE, compare

from triform import config, hub
from triform.nn.adapter import add_adapter, linear_layers, merge_adapter, without_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = {
    "bert", "bert-classes", "roberta", "distilbert", "gpt2", "llama-tied-biases", "mixtral", "qwen3", "qwen3-experts", "gemma3", "t5-1.1",
    "switch", "bart", "marian", "vit", "clip",
}  # fmt: skip
EVERY = [
    pytest.param(name, kind, marks=[] if name in FAMILIES else pytest.mark.slow, id=f"{name}-{kind}")
    for name in CASES for kind in ("lora", "dora")
]  # fmt: skip


def moved(model: Any) -> None:
    """Give every part of an adapter values that change something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name or "magnitude" in name:
                p.add_(0.03 * torch.randn(p.shape, generator=generator))


def ours(name: str) -> Any:
    return hub.load_public(reference(name)[1]).double()


def theirs_of(name: str) -> Any:
    model = copy.deepcopy(reference(name)[0]).double()
    if name.startswith(("mixtral", "qwen3-experts")):
        model.set_experts_implementation("eager")  # the other is for fp32 and less
    return model


def same_weights(one: Any, other: Any) -> bool:
    """Whether weights differ by no more than fp32 rounds in a sum, a length and two products, relative to the largest of each matrix."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(n == m and float((a - b).abs().max()) <= 1e-6 * float(b.abs().max()) for (n, a), (m, b) in pairs)


def targets(name: str) -> Any:
    """All, but where PEFT takes a feed-forward's matrices for those of experts, which stand beside it."""
    return ("query", "key", "value", "out") if name.startswith("qwen3-experts") else "all"


def linear_modules(model: Any, name: str) -> list[str]:
    """The names of the reference's modules that hold our layers in blocks, but for experts and their routers."""
    import transformers

    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = [n for n, m in model.named_modules() if isinstance(m, kinds) and any(part.isdigit() for part in n.split("."))]
    left_out = ("router", "experts", "mlp") if name.startswith("qwen3-experts") else ("router", "experts")
    return [n for n in found if not any(part in left_out for part in n.split(".")) and not n.endswith("block_sparse_moe.gate")]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_peft_reads_what_we_wrote(name: str, kind: str, tmp_path: Path) -> None:
    theirs, base = theirs_of(name), reference(name)[1]
    model = ours(name)
    add_adapter(model, config.Adapter(rank=3, alpha=7, kind=kind, rslora=kind == "lora", whole=(), targets=targets(name)), seed=0)
    assert compare(model, theirs, name) < TOLERANCE
    moved(model)
    assert compare(model, theirs, name) > 10 * TOLERANCE  # the control
    hub.save_adapter(model, None, tmp_path / "adapter", base)
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").double().eval()
    assert compare(model, wrapped.base_model.model, name) < TOLERANCE
    merge_adapter(model)
    assert compare(model, wrapped.merge_and_unload(), name) < TOLERANCE
    assert same_weights(hub.load(tmp_path / "adapter")[0].double(), model)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_we_read_what_peft_wrote(name: str, kind: str, tmp_path: Path) -> None:
    theirs, base = theirs_of(name), reference(name)[1]
    names = linear_modules(theirs, name)
    patterns: dict[str, Any] = {"rank_pattern": {names[0]: 5}, "alpha_pattern": {names[0]: 9}}
    torch.manual_seed(0)  # of PEFT's own start
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=names, use_dora=kind == "dora", use_rslora=kind == "dora", **patterns)
    wrapped = peft.get_peft_model(theirs, settings).eval()
    moved(wrapped)
    wrapped.float().save_pretrained(tmp_path)
    wrapped.double()
    model = ours(name)
    hub.load_adapter(model, tmp_path, families=[hub.Checkpoint.open(base).family])
    assert compare(model, wrapped.base_model.model, name) < TOLERANCE
    with without_adapter(model):
        assert compare(model, wrapped.base_model.model, name) > 10 * TOLERANCE  # the control
    found = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(found | {"base_model_name_or_path": str(base)}), encoding="utf-8")
    merge_adapter(model)
    assert compare(model, wrapped.merge_and_unload(), name) < TOLERANCE
    assert same_weights(hub.load(tmp_path)[0].double(), model)


@pytest.mark.parametrize("name", ["bert-classes", "llama-classes", "gpt2-tokens", "roberta-answers", "vit"])
def test_a_head_that_was_trained_whole_goes_along(name: str, tmp_path: Path) -> None:
    theirs, base = theirs_of(name), reference(name)[1]
    model = ours(name)
    add_adapter(model, config.Adapter(rank=2, targets=("query",)), seed=0)
    moved(model)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.startswith("head."):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    hub.save_adapter(model, None, tmp_path / "adapter", base)
    assert compare(model, theirs, name) > 10 * TOLERANCE
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").double().eval()
    assert compare(model, wrapped.base_model.model, name) < TOLERANCE
    merge_adapter(model)
    assert same_weights(hub.load(tmp_path / "adapter")[0].double(), model)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradients_are_peft_s(kind: str, tmp_path: Path) -> None:
    theirs, base = theirs_of("llama"), reference("llama")[1]
    model = ours("llama")
    add_adapter(model, config.Adapter(rank=3, kind=kind), seed=0)
    moved(model)
    hub.save_adapter(model, None, tmp_path, base)
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True).double().eval()
    ids = torch.arange(3, 20)[None]
    model(ids).logits.square().sum().backward()
    wrapped(input_ids=ids).logits.square().sum().backward()
    expected = {n: p.grad for n, p in wrapped.named_parameters() if p.requires_grad}
    layers = linear_layers(model)
    for i in range(3):
        for part, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            mine = getattr(layers[f"decoder.layers.{i}.attention.body.query"].adapter["0"], part).grad  # type: ignore[operator, union-attr, index]
            other = expected[f"base_model.model.model.layers.{i}.self_attn.q_proj.{name}.default.weight"]
            assert other is not None
            assert float((mine - other).norm() / other.norm()) < TOLERANCE
