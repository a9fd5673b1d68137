"""Models out as GGUF files and in again."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf_tools import SPECS, VOCAB, build

from triform import config, hub
from triform.hub import NoCounterpart
from triform.hub.function import differences
from triform.hub.gguf import GGUFFile, write
from triform.nn.norm import RMSNorm


def _whole(model, name, tensor):
    """A weight, and the whole scale of a norm that keeps what it differs from one by: that is what files hold exactly."""
    module = model.get_submodule(name.rpartition(".")[0])
    return tensor + 1 if isinstance(module, RMSNorm) and module.spec.unit_offset else tensor


@pytest.mark.parametrize("name", SPECS)
def test_fp32_comes_back_as_it_went(tmp_path, name):
    model = build(SPECS[name])
    assert write(model, None, tmp_path / "m.gguf", "fp32") == []
    back, tokenizer = hub.load(tmp_path / "m.gguf")
    assert tokenizer is None
    assert differences(model.config, back.config) == {}
    other = dict(back.named_parameters())
    assert other.keys() == dict(model.named_parameters()).keys()
    for weight, tensor in model.named_parameters():
        assert torch.equal(_whole(model, weight, tensor), _whole(back, weight, other[weight])), weight
    ids = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, back(ids).logits)
        assert not torch.equal(build(SPECS[name], seed=1)(ids).logits, back(ids).logits)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_keeps_vectors_and_routers_whole(tmp_path, dtype):
    model = build(SPECS["mixtral"])
    write(model, None, tmp_path / "m.gguf", dtype)
    found, half = GGUFFile(tmp_path / "m.gguf"), {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert torch.equal(found["blk.0.attn_v.weight"], model.decoder.layers["0"].attention.body.value.weight.to(half))
    assert {name for name in found if found.dtype(name) == torch.float32} == {
        "output_norm.weight", *(f"blk.{i}.{part}.weight" for i in range(3) for part in ("attn_norm", "ffn_norm", "ffn_gate_inp")),
    }  # fmt: skip
    written = {field: found.metadata[f"general.{field}"] for field in ("architecture", "name", "file_type", "quantization_version")}
    assert written == {"architecture": "llama", "name": "m", "file_type": 1 if dtype == "fp16" else 32, "quantization_version": 2}


@pytest.mark.parametrize(("dtype", "tied"), [("q8_0", True), ("q8_0", False), ("q4_0", True), ("q4_0", False)])
def test_quantized_blocks_are_the_references(tmp_path, dtype, tied):
    model = build(replace(SPECS["llama"], head=config.LanguageModel(tied=tied)))
    write(model, None, tmp_path / "m.gguf", dtype)
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    chosen = gguf.GGMLQuantizationType[dtype.upper()]
    output = "token_embd.weight" if tied else "output.weight"
    assert {kind for name, kind in kinds.items() if name != output} == {gguf.GGMLQuantizationType.F32, chosen}
    assert kinds[output] == gguf.GGMLQuantizationType.Q8_0
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        if tensor.name == "blk.2.ffn_down.weight":
            ours = model.decoder.layers["2"].feed_forward.body.down.weight.detach().numpy()
            assert np.array_equal(tensor.data, gguf.quants.quantize(ours, chosen))
            assert not np.array_equal(tensor.data, gguf.quants.quantize(-ours, chosen))


def test_rows_that_make_no_whole_blocks_stay_fp16(tmp_path):
    spec = SPECS["llama"]
    block = spec.last.block(0)
    odd = replace(block, feed_forward=replace(block.feed_forward, hidden=72))
    write(build(replace(spec, decoder=replace(spec.last, pattern=(odd,)))), None, tmp_path / "m.gguf", "q8_0")
    kinds = {name: stored.kind for name, stored in GGUFFile(tmp_path / "m.gguf").header.tensors.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def _changed(name: str, **block) -> config.Transformer:
    spec = SPECS[name]
    return replace(spec, decoder=replace(spec.last, pattern=(replace(spec.last.block(0), **block),)))


_LLAMA = SPECS["llama"].last.block(0)
_QWEN3 = SPECS["qwen3"].last.block(0)
_TWO = (_LLAMA, replace(_LLAMA, attention=replace(_LLAMA.attention, window=8)))
REFUSED = {
    "an encoder": (tiny.encoder(), "encoder-only"),
    "an encoder-decoder": (tiny.encoder_decoder(), "encoder-decoder"),
    "alibi": (tiny.decoder("alibi"), "position"),
    "ReLU": (_changed("llama", feed_forward=replace(_LLAMA.feed_forward, activation="relu")), "activation is relu, and there silu"),
    "no gate": (_changed("llama", feed_forward=replace(_LLAMA.feed_forward, gated=False)), "gated is no, and there yes"),
    "post-norm": (_changed("llama", placement="post"), "placement is post, and there pre"),
    "some windows": (replace(SPECS["llama"], decoder=replace(SPECS["llama"].last, pattern=_TWO)), "window is 8, and there none"),
    "a scale": (_changed("llama", attention=replace(_LLAMA.attention, scale=1.0)), "scale is 1, and there 0.25"),
    "experts not renormalized": (
        _changed("mixtral", feed_forward=replace(SPECS["mixtral"].last.block(0).feed_forward, renormalize=False)), "renormalize is no"
    ),
    "a shared expert": (
        _changed("mixtral", feed_forward=replace(SPECS["mixtral"].last.block(0).feed_forward, shared=_LLAMA.feed_forward)), "shared"
    ),
    "Llama 3's scaling beside QK norm": (
        _changed("qwen3", attention=replace(_QWEN3.attention, position=SPECS["llama3"].last.block(0).attention.position)), "scaling"
    ),
    "a bias of the output": (replace(SPECS["llama"], head=config.LanguageModel(tied=False, bias="learned")), "head.bias is learned"),
    "another head": (replace(SPECS["llama"], head=config.Classify(labels=2)), "head is Classify, and there LanguageModel"),
    "no last norm": (replace(SPECS["llama"], decoder=replace(SPECS["llama"].last, norm=None)), "norm is none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_architecture_expresses_is_named(tmp_path, case):
    spec, said = REFUSED[case]
    with pytest.raises(NoCounterpart) as error:
        write(build(spec), None, tmp_path / "m.gguf", "fp32")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_all_layers_bounds_the_context(tmp_path):
    write(build(_changed("llama", attention=replace(_LLAMA.attention, window=24))), None, tmp_path / "m.gguf", "fp32")
    assert GGUFFile(tmp_path / "m.gguf").metadata["llama.context_length"] == 24


def test_weights_beyond_fp16_are_refused_and_the_old_file_stays(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"old")
    model = build(SPECS["llama"])
    with torch.no_grad():
        model.decoder.layers["2"].feed_forward.body.up.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"blk\.2\.ffn_up\.weight holds numbers that fp16 cannot"):
        write(model, None, tmp_path / "m.gguf", "fp16")
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    write(model, None, tmp_path / "m.gguf", "bf16")
    assert GGUFFile(tmp_path / "m.gguf").spec.last.depth == 3


def test_other_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of fp32, fp16, bf16, q8_0, q4_0"):
        write(build(SPECS["llama"]), None, tmp_path / "m.gguf", "q4_k")


def test_progress_is_told_after_each_tensor(tmp_path):
    said: list[tuple[int, int]] = []
    write(build(SPECS["llama"]), None, tmp_path / "m.gguf", "bf16", done=lambda written, total: said.append((written, total)))
    assert said == [(i + 1, 30) for i in range(30)]


@pytest.mark.parametrize("name", ["llama", "llama-tied-wide", "qwen2"])
def test_transformers_reads_the_same_model_out_of_a_file(tmp_path, name):
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = build(SPECS[name])
    write(model, None, tmp_path / "m.gguf", "fp32")
    said = load_gguf_checkpoint(str(tmp_path / "m.gguf"))["config"]
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**said)).eval()
    tensors = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=theirs)["tensors"]
    assert set(theirs.load_state_dict(tensors, strict=False).missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert (model(ids).logits - theirs(ids).logits).abs().max() < 1e-5
        assert (build(SPECS[name], seed=1)(ids).logits - theirs(ids).logits).abs().max() > 0.1
