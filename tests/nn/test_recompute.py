"""Recomputing changes what is kept for the backward pass, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triform import config, nn
from triform.kernels import training
from triform.nn.dropout import Dropout
from triform.nn.recompute import Recompute

HOWS: list[Recompute] = ["selective", "full"]


def _with_dropout(spec: config.Transformer) -> config.Transformer:
    """The same with dropout in blocks, attention and feed-forwards."""
    paths = {}
    for side in ("encoder", "decoder"):
        if (stack := getattr(spec, side)) is not None:
            for i, block in enumerate(stack.pattern):
                paths |= {f"{side}.pattern[{i}].dropout": 0.2, f"{side}.pattern[{i}].attention.dropout": 0.2}
                inner = "feed_forward.expert" if isinstance(block.feed_forward, config.Experts) else "feed_forward"
                paths[f"{side}.pattern[{i}].{inner}.dropout"] = 0.2
    found = config.with_overrides(config.Model, spec, paths)
    assert isinstance(found, config.Transformer)
    return found


HEAD = config.LanguageModel()
PLAIN = {
    "decoder": tiny.decoder("learned"),
    "rotary, grouped": tiny.decoder("rotary", kv_heads=2, qk_norm=config.RMSNorm()),
    "window": tiny.decoder("alibi", window=3),
    "encoder": tiny.encoder("learned"),
    "post": config.Transformer(encoder=tiny.stack(tiny.attention(), placement="post"), head=HEAD),
    "sandwich": config.Transformer(encoder=tiny.stack(tiny.attention("rotary"), placement="sandwich", norm=config.RMSNorm()), head=HEAD),
    "gated": config.Transformer(decoder=tiny.stack(tiny.attention(mask="causal"), feed_forward=tiny.GATED), head=HEAD),
    "experts": config.Transformer(decoder=tiny.stack(tiny.attention(mask="causal"), feed_forward=tiny.EXPERTS), head=HEAD),
    "encoder-decoder": tiny.encoder_decoder("bucketed"),
}
SPECS = PLAIN | {f"{name}, dropout": _with_dropout(spec) for name, spec in PLAIN.items()}


def one_pass(model: Any, how: Recompute, case: str = "plain", dtype: torch.dtype | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Loss and gradients of a training pass, and what the random generator draws after it."""
    ids = tiny.ids(2, 7)
    mask = torch.tensor([[True] * 7, [False] * 3 + [True] * 4]) if case == "padded" else None
    target = tiny.ids(2, 5, seed=1) if model.encoder is not None and model.decoder is not None else None
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    layout = nn.Layout(documents=documents, target_documents=None if target is None else documents[:, :5]) if case == "packed" else None
    torch.manual_seed(5)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), nn.recomputing(how):
        out = model(ids, mask, target, layout=layout)
    loss = out.logits.float().sin().sum()
    if out.aux.load_balance is not None:
        loss = loss + out.aux.load_balance + 0.1 * out.aux.router_z
    loss.backward()
    after = torch.rand(1)
    model.eval()
    return (loss.detach(), after), tiny.gradients(model)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradients_are_equal_to_the_last_bit(name: str, dtype: torch.dtype, how: Recompute) -> None:
    model = tiny.build(SPECS[name])
    for case in ("plain", "padded", "packed") if dtype is torch.float32 else ("plain",):
        loss, wanted = one_pass(model, "none", case, dtype)
        got, gradients = one_pass(model, how, case, dtype)
        assert all(torch.equal(a, b) for a, b in zip(loss, got, strict=True))
        assert [key for key in wanted if not torch.equal(gradients[key], wanted[key])] == []
        assert sum(float(g.abs().sum()) for g in wanted.values()) > 1


def test_the_comparison_sees_another_draw_of_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the random state of the forward pass, the recomputed masks would be others."""
    model = tiny.build(SPECS["decoder, dropout"])
    _, wanted = one_pass(model, "none")
    plain = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("triform.nn.recompute.checkpoint", lambda *a, **k: plain(*a, preserve_rng_state=False, **k))
    assert not all(torch.equal(g, wanted[key]) for key, g in one_pass(model, "full")[1].items())


KEPT = {
    "plain": tiny.decoder(),
    "dropout": _with_dropout(tiny.decoder()),
    "rotary, gated, RMSNorm": config.Transformer(
        decoder=tiny.stack(tiny.attention("rotary", mask="causal"), feed_forward=tiny.GATED, norm=config.RMSNorm()), head=HEAD
    ),
}


class Counter(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = str(function.overloadpacket.__name__)
        self.ran[name] = self.ran.get(name, 0) + 1
        return function(*arguments, **(named or {}))


def counted(model: Any, how: Recompute) -> dict[str, int]:
    with Counter() as counter:
        one_pass(model, how)
    return counter.ran


def test_what_is_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of six products with weights each, four of which see the input's gradient again when all is run twice."""
    monkeypatch.setattr(training, "library", lambda: None)  # its work is not seen by torch
    model = tiny.build(SPECS["decoder"])
    none, selective, full = (counted(model, how) for how in ("none", "selective", "full"))
    layers, again = 2, 5  # the last product of a block is not needed
    assert full["addmm"] - none["addmm"] == layers * again
    assert selective["addmm"] == none["addmm"]
    assert selective["gelu"] == full["gelu"] == none["gelu"] == 2 * layers  # without recomputing, the activation runs again alone
    assert selective["native_layer_norm"] == full["native_layer_norm"] == none["native_layer_norm"] + 2 * layers
    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    assert full[kernel] == 2 * selective[kernel] == 2 * none[kernel] == 2 * layers


def kept(spec: config.Transformer, how: Recompute) -> float:
    """The bytes that a pass leaves for its backward pass, for each byte of its output."""
    model, ids = nn.build(spec, seed=0), torch.ones(8, 20, dtype=torch.long)
    model(ids)  # whatever is made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile, nn.recomputing(how):
        out = model(ids, logits=False)
    return float(sum(event.self_cpu_memory_usage for event in profile.events()) / out.hidden.nbytes)


@pytest.mark.parametrize(
    ("name", "products", "saved"),
    [  # query, key, value, out; up and gate of 1.5 widths each; down
        ("plain", 3 + 1 + 1.5 + 1, 0.05),
        ("dropout", 3 + 1 + 1.5 + 1, 0.6),
        ("rotary, gated, RMSNorm", 3 + 1 + 3 + 1, 0.05),
    ],
)
def test_what_is_kept(name: str, products: float, saved: float) -> None:
    none, selective, full = (kept(KEPT[name], how) for how in ("none", *HOWS))
    assert (selective - full) / 2 == pytest.approx(products, abs=0.01)
    assert full < selective < (1 - saved) * none


@pytest.mark.parametrize("how", HOWS)
def test_stages_with_absent_layers(how: Recompute) -> None:
    model = tiny.build(SPECS["encoder-decoder"])
    whole = model.decoder.layers
    try:
        model.decoder.layers = torch.nn.ModuleDict({"1": whole["1"]})
        _, wanted = one_pass(model, "none")
        _, got = one_pass(model, how)
    finally:
        model.decoder.layers = whole
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    model.zero_grad()


@pytest.mark.parametrize("how", HOWS)
def test_a_trace_and_a_cache_are_as_without(how: Recompute) -> None:
    model, ids = tiny.build(SPECS["rotary, grouped"]), tiny.ids(2, 6)
    traces = [nn.Trace(weights=True), nn.Trace(weights=True)]
    caches = [nn.Cache.growing(model.config), nn.Cache.growing(model.config)]
    found = []
    for said, trace, cache in zip(("none", how), traces, caches, strict=True):
        with nn.recomputing(said):
            model(ids, trace=trace).logits.sum().backward()
            found.append(torch.cat([model(part, cache=cache).logits for part in ids.split([4, 2], 1)], 1))
        model.zero_grad()
    assert torch.equal(*found)
    assert [len(cache.layers[0].key[0, 0]) for cache in caches if cache.layers[0].key is not None] == [6, 6]
    for left, right in zip(traces[0].hidden, traces[1].hidden, strict=True):
        assert torch.equal(left, right)
    assert traces[0].attention.keys() == traces[1].attention.keys()


@pytest.mark.parametrize("how", HOWS)
def test_two_towers(how: Recompute) -> None:
    spec = config.DualEncoder(text=tiny.stack(tiny.attention(), dropout=0.1), image=_image(), width=8, end_token=None)
    model = nn.build(spec, seed=0)
    found = []
    for said in ("none", how):
        torch.manual_seed(1)
        with nn.recomputing(said):
            model(tiny.ids(2, 5), target=torch.ones(2, 3, 4, 4)).logits.sin().sum().backward()
        found.append(tiny.gradients(model))
    assert all(torch.equal(found[1][key], found[0][key]) for key in found[0])


def _image() -> config.Stack:
    block = config.Block(attention=tiny.attention(), feed_forward=tiny.FEED_FORWARD, dropout=0.1)
    return config.Stack(width=tiny.WIDTH, depth=2, input=config.Patches(image=4, patch=2, channels=3), pattern=(block,))


def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model = tiny.build(SPECS["rotary, grouped"])
    ids = tiny.ids(2, 6)
    model(ids).logits.sin().sum().backward()
    wanted = tiny.gradients(model)
    for how in ("none", *HOWS):
        with nn.recomputing(how):
            torch.compile(model, backend="aot_eager", fullgraph=True)(ids).logits.sin().sum().backward()
        tiny.assert_close(tiny.gradients(model), wanted, 1e-5)


def test_without_gradients_nothing_is_kept_or_run_twice() -> None:
    model = tiny.build(SPECS["decoder"])
    with torch.no_grad(), nn.recomputing("full"):
        assert torch.equal(model(tiny.ids(2, 5)).logits, model(tiny.ids(2, 5)).logits)
    assert any(isinstance(module, Dropout) for module in model.modules())
