"""What stands on a stack, and what can be seen of a pass."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from triform import config, nn
from triform.nn.feedforward import ACTIVATIONS

HIDDEN = torch.randn(2, 4, tiny.WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "head",
    [
        config.LanguageModel(scale=0.25, bias="learned"),
        config.LanguageModel(tied=False, transform="gelu", bias="fixed", norm=config.LayerNorm(eps=1e-3)),
    ],
    ids=str,
)
def test_a_language_model_head_by_its_formula(head: config.LanguageModel) -> None:
    model = tiny.build(tiny.encoder(head=head))
    matrix = model.encoder.input.token.weight if head.tied else model.head.weight
    x = HIDDEN
    if head.transform:
        x = F.gelu(x @ model.head.dense.weight.T + model.head.dense.bias)
        x = F.layer_norm(x, (tiny.WIDTH,), model.head.norm.weight, model.head.norm.bias, 1e-3)
    tiny.assert_close(model.score(HIDDEN), x * head.scale @ matrix.T + model.head.bias, 1e-5)
    assert ("head.bias" in dict(model.named_parameters())) == (head.bias == "learned")


@pytest.mark.parametrize(("pool", "place"), [("first", 0), ("last", 3), ("end", 2)])
def test_pooling_reads_one_place(pool: Any, place: int) -> None:
    """`end` is the last end token: id 5 stands at 1 and 2."""
    head = config.Classify(labels=3, pool=pool, transform="tanh", end_token=5 if pool == "end" else None)
    model = tiny.build(tiny.encoder(head=head))
    ids = torch.tensor([[1, 5, 5, 2], [1, 5, 5, 9]])
    wanted = model.head.out(torch.tanh(model.head.dense(HIDDEN[:, place])))
    tiny.assert_close(model.score(HIDDEN, None, ids), wanted, 1e-6)


def test_the_mean_is_of_what_is_seen() -> None:
    model = tiny.build(tiny.encoder(head=config.Embed(pool="mean", normalize=True)))
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    wanted = torch.stack((HIDDEN[0, :2].mean(0), HIDDEN[1, 1:].mean(0)))
    tiny.assert_close(model.score(HIDDEN, mask), wanted / wanted.norm(dim=-1, keepdim=True), 1e-6)
    tiny.assert_close(model.score(HIDDEN, mask.long()), model.score(HIDDEN, mask), 0)


def test_a_row_without_its_end_token_is_refused() -> None:
    model = tiny.build(tiny.encoder(head=config.Classify(labels=2, pool="end", end_token=5)))
    with pytest.raises(ValueError, match="expected one in every row"):
        model(torch.tensor([[1, 5], [1, 2]]))
    with pytest.raises(ValueError, match="expected one in every row"):  # in the padding it does not count
        model(torch.tensor([[1, 5]]), torch.tensor([[True, False]]))


def test_an_answer_never_starts_in_padding() -> None:
    model = tiny.build(tiny.encoder(head=config.AnswerSpan()))
    ids, mask = tiny.ids(2, 6), torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    scores = model(ids, mask).logits
    assert scores.shape == (2, 6, 2)
    assert scores.softmax(1)[0, 3:].eq(0).all()
    assert scores.softmax(1)[1].gt(0).all()
    assert F.cross_entropy(model(ids, torch.zeros(2, 6)).logits[..., 0], torch.zeros(2, dtype=torch.long)).isfinite()


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (config.Classify(labels=3), (2, 3)),
        (config.ClassifyTokens(labels=3), (2, 5, 3)),
        (config.Embed(pool="first", transform="tanh"), (2, tiny.WIDTH)),
        (config.Embed(width=7), (2, 7)),
    ],
    ids=str,
)
def test_shapes(head: config.Head, shape: tuple[int, ...]) -> None:
    for spec in (tiny.encoder(head=head), tiny.decoder(head=head), tiny.encoder_decoder(head=head)):
        target = tiny.ids(2, 5) if spec.form == "encoder-decoder" else None
        out = tiny.build(spec)(tiny.ids(2, 5), target=target)
        assert out.logits.shape == shape
        assert out.hidden.shape == (2, 5, tiny.WIDTH)
        assert (out.memory is not None) == (target is not None)


def test_a_sentence_head_stands_beside_the_first() -> None:
    """BERT: masked words, and whether the second sentence follows the first."""
    spec = config.Transformer(
        encoder=tiny.encoder("learned").encoder,
        head=config.LanguageModel(transform="gelu", bias="learned"),
        sentence_head=config.Classify(labels=2, transform="tanh"),
    )
    model, ids = tiny.build(spec), tiny.ids(2, 5)
    segments = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    out = model(ids, layout=nn.Layout(segments=segments))
    head = model.sentence_head
    tiny.assert_close(out.sentence_logits, head.out(torch.tanh(head.dense(out.hidden[:, 0]))), 1e-6)
    assert not torch.allclose(model(ids).sentence_logits, out.sentence_logits)
    tiny.assert_close(model(ids, layout=nn.Layout(segments=0 * segments)).logits, model(ids).logits, 1e-6)
    assert model(ids, logits=False).sentence_logits is None


def test_a_target_is_asked_for() -> None:
    with pytest.raises(ValueError, match="needs target"):
        tiny.build(tiny.encoder_decoder())(tiny.ids(1, 3))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_by_its_formula(activation: Any, gated: bool) -> None:
    body = nn.FeedForward(config.FeedForward(hidden=6, activation=activation, gated=gated), tiny.WIDTH)
    formulas = {
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
        "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "tanh": lambda x: 2 / (1 + torch.exp(-2 * x)) - 1,
    }
    act, up = formulas[activation], body.up(HIDDEN)
    tiny.assert_close(body(HIDDEN), body.down(act(up) if body.gate is None else act(body.gate(HIDDEN)) * up), 1e-5)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_where_the_norm_stands(placement: Any) -> None:
    model = tiny.build(config.Transformer(encoder=tiny.stack(tiny.attention(), depth=1, placement=placement)))
    model.encoder.input, saved = None, model.encoder.input
    try:
        got = model(HIDDEN).hidden
    finally:
        model.encoder.input = saved
    x, view = HIDDEN, nn.mask.View()
    for sublayer, args in ((model.encoder.layers["0"].attention, (view,)), (model.encoder.layers["0"].feed_forward, ())):
        if placement == "post":
            x = sublayer.norm(x + sublayer.body(x, *args))
        elif placement == "pre":
            x = x + sublayer.body(sublayer.norm(x), *args)
        else:
            x = x + sublayer.norm_out(sublayer.body(sublayer.norm(x), *args))
    tiny.assert_close(got, x if placement == "post" else model.encoder.norm(x), 1e-5)


def test_rms_norm_by_its_formula() -> None:
    for offset in (0.0, 1.0):
        norm = nn.norm.RMSNorm(config.RMSNorm(eps=1e-2, unit_offset=bool(offset)), tiny.WIDTH)
        torch.nn.init.normal_(norm.weight)
        wanted = HIDDEN / (HIDDEN.square().mean(-1, keepdim=True) + 1e-2).sqrt() * (norm.weight + offset)
        tiny.assert_close(norm(HIDDEN), wanted, 1e-6)
        tiny.assert_close(norm(HIDDEN.bfloat16()).float(), wanted, 1e-2)


FIELDS: list[dict[str, Any]] = [
    {"mask": "causal"},
    {"mask": "bidirectional"},
    {"mask": "causal", "window": 2, "kv_heads": 1},
    {"mask": "prefix", "scale": 0.7, "qk_norm": config.RMSNorm()},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("position", ["none", "rotary", "bucketed", "alibi"])
def test_traced_weights_are_those_that_attention_used(position: str, fields: dict[str, Any]) -> None:
    """They sum to one, and times the values they give what the layer gave."""
    model, ids, trace = tiny.build(tiny.decoder(position, **fields)), tiny.ids(2, 6), nn.Trace(weights=True)
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    body = model.decoder.layers["1"].attention.body
    seen: list[Any] = []
    hooks = [
        body.value.register_forward_hook(lambda _, inputs, output: seen.append(output)),
        body.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
    ]
    with torch.no_grad():
        plain = model(ids, mask).logits
        seen.clear()
        tiny.assert_close(model(ids, mask, trace=trace).logits, plain, 1e-6)
    for hook in hooks:
        hook.remove()
    weights, value = trace.attention["decoder.layers.1.attention"], seen[0].unflatten(-1, (-1, 4)).transpose(1, 2)
    value = value.repeat_interleave(4 // value.shape[1], 1)
    assert weights.shape == (2, 4, 6, 6)
    tiny.assert_close(weights.sum(-1)[mask[:, None].expand(-1, 4, -1)], torch.ones(40), 1e-5)
    mixed = (weights @ value).transpose(1, 2).flatten(-2)
    tiny.assert_close(mixed[mask], seen[1][mask], 1e-5)
    with pytest.raises(AssertionError):
        tiny.assert_close((weights.roll(1, 1) @ value).transpose(1, 2).flatten(-2)[mask], seen[1][mask], 1e-5)


def test_a_trace_of_an_encoder_decoder() -> None:
    model, trace = tiny.build(tiny.encoder_decoder("bucketed")), nn.Trace(weights=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = model(tiny.ids(2, 5), mask, tiny.ids(2, 3), trace=trace)
    kinds = ("encoder.layers.{}.attention", "decoder.layers.{}.attention", "decoder.layers.{}.cross")
    assert set(trace.attention) == {kind.format(i) for kind in kinds for i in range(2)}
    cross = trace.attention["decoder.layers.0.cross"]
    assert cross.shape == (2, 2, 3, 5)
    tiny.assert_close(cross[0].sum(-1), torch.ones(2, 3), 1e-5)
    assert cross[1].eq(0).all()  # a memory of nothing but padding
    assert len(trace.hidden) == 6
    assert torch.equal(trace.hidden[2], out.memory)
    assert torch.equal(trace.hidden[-1], out.hidden)
    assert not nn.Trace().attention


IMAGE = config.Stack(
    width=tiny.WIDTH,
    depth=1,
    input=config.Patches(image=8, patch=4, channels=2, norm=config.LayerNorm()),
    pattern=tiny.stack(tiny.attention()).pattern,
)


def test_patches_by_their_formula() -> None:
    """Each patch is a row of pixels times a matrix, the class token first."""
    stack = tiny.build(config.Transformer(encoder=IMAGE)).encoder
    pixels = torch.randn(3, 2, 8, 8)
    rows = [pixels[:, :, y : y + 4, x : x + 4].flatten(1) for y in (0, 4) for x in (0, 4)]
    vectors = torch.stack(rows, 1) @ stack.input.patch.weight.flatten(1).T + stack.input.patch.bias
    wanted = torch.cat((stack.input.first.expand(3, 1, -1), vectors), 1) + stack.input.position
    tiny.assert_close(stack.input(pixels), stack.input.norm(wanted), 1e-5)
    with pytest.raises(ValueError, match=r"expected pixels of shape \(batch, 2, 8, 8\), got \(3, 2, 8, 4\)"):
        stack.input(pixels[..., :4])


def test_an_image_reads_into_words() -> None:
    """An encoder of patches with a decoder of tokens: captions."""
    spec = config.Transformer(encoder=IMAGE, decoder=tiny.encoder_decoder().decoder, head=config.LanguageModel())
    out = tiny.build(spec)(torch.randn(2, 2, 8, 8), target=tiny.ids(2, 4))
    assert out.logits.shape == (2, 4, tiny.VOCAB)
    assert out.memory.shape == (2, 5, tiny.WIDTH)


@pytest.mark.parametrize("end_token", [None, 5])
def test_two_towers(end_token: int | None) -> None:
    spec = config.DualEncoder(text=tiny.stack(tiny.attention("rotary", mask="causal")), image=IMAGE, width=6, end_token=end_token)
    model, pixels = tiny.build(spec), torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    end = end_token or tiny.VOCAB - 1
    ids = torch.tensor([[1, 2, end, 0], [3, end, 0, 0]])
    out = model(ids, target=pixels)
    assert out.logits.shape == (2, 3)
    tiny.assert_close(out.hidden.norm(dim=-1), torch.ones(2), 1e-6)
    tiny.assert_close(out.logits, model.temperature.exp() * out.hidden @ out.memory.T, 1e-5)
    tiny.assert_close(model.embed_text(ids[1:, :2]), out.hidden[1:], 1e-5)  # causal: what follows the end token does not matter
    left = torch.tensor([[end, end, 3, end]])
    tiny.assert_close(model.embed_text(left, torch.tensor([[False, False, True, True]])), out.hidden[1:], 1e-5)
    assert model(ids).logits is None
