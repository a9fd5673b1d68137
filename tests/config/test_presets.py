"""The named models: every one that is promised, with the published number of parameters."""

import dataclasses

import pytest

from triform import config, nn

# Shared weights once. Encoders of the BERT family with their pooler; ViT with 1000 classes; BART's output bias is no parameter.
# As counted on the published classes of Hugging Face transformers, and for 2017 on torch.nn.Transformer without its last norms.
PARAMETERS = {
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "bert-base": 109_482_240,
    "bert-base-chinese": 102_267_648,
    "bert-large": 335_141_888,
    "chatlm-mini-chinese": 187_692_288,
    "clip-vit-base-patch32": 151_277_313,
    "clip-vit-large-patch14": 427_616_513,
    "distilbert-base": 66_362_880,
    "flan-t5-base": 247_577_856,
    "gemma3-270m": 268_098_176,
    "gpt2": 124_439_808,
    "gpt2-large": 774_030_080,
    "gpt2-medium": 354_823_168,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "llama-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-65b": 65_285_660_672,
    "llama-7b": 6_738_415_616,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-8b": 8_190_735_360,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "smollm2-135m": 134_515_008,
    "switch-base-8": 619_339_008,
    "t5-11b": 11_307_321_344,
    "t5-3b": 2_851_598_336,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-small": 60_506_624,
    "transformer-base": 63_082_496,
    "transformer-big": 214_245_376,
    "vit-base-patch16-224": 86_567_656,
    "vit-large-patch16-224": 304_326_632,
}


def parameters(model: config.Model) -> int:
    return sum(p.numel() for p in nn.build(model, device="meta").parameters())


def test_every_promised_preset_is_there() -> None:
    assert PARAMETERS.keys() <= set(config.presets())


@pytest.mark.parametrize("name", PARAMETERS)
def test_counts_the_published_parameters(name: str) -> None:
    assert parameters(config.preset(name)) == PARAMETERS[name]


def test_bert_base_without_its_pooler() -> None:
    assert parameters(dataclasses.replace(config.preset("bert-base"), head=None)) == 108_891_648


@pytest.mark.parametrize("override", ["encoder.depth=11", "encoder.input.segments=1", "encoder.pattern[0].attention.bias=none"])
def test_a_wrong_shape_is_counted_differently(override: str) -> None:
    assert parameters(config.resolve("bert-base", [override])) != PARAMETERS["bert-base"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_says_where_its_shape_is_published(name: str) -> None:
    assert (config.source(name) or "").startswith("https://")


@pytest.mark.parametrize(("typed", "meant"), [("bert-bse", "bert-base"), ("GPT2", "gpt2"), ("lama-7b", "llama-7b")])
def test_an_unknown_name_is_answered_with_near_ones(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"no preset is named '{typed}'; did you mean .*{meant}"):
        config.preset(typed)
