"""What llama.cpp makes of our files, and we of one that it made. Needs `pip install "triform[interop]"`.

llama.cpp multiplies weights of 4 and 8 bits with activations that it quantizes too, so that next to ties its choice of a
token can differ from that of the same weights in fp32; where that matters, it is given the dequantized weights.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from gguf_tools import SPECS, VOCAB, build, greedy, llama_cpp

from triform import config, hub
from triform.hub.gguf import write
from triform.text import Tokenizer, train_tokenizer

pytestmark = pytest.mark.slow
HARMLESS = ("adding 96 dummy tokens", "possible training context overflow", "using full-size SWA cache")
TEXTS = ["天下大势，分久必合，合久必分。话说周末七国分争，并入于秦。", "The cat sat on the mat; it's 2024!", "第1回 宴桃园豪杰三结义"]
ODD = [
    "  two  spaces\n\n\ttab\r\n  x", "don't I'LL 'shortmess' {'a': [1, 2]}", "½ ٣٤ 12345 نص é नमस्ते", "𠮷野家 ｱｲｳ か゚ 한국어 ไทย 👍🏽",
    "　全角　空格“引号”……——", "\tif x >= 3:\n\t\treturn -y\n\n\n", "㐀㐁 龦 a中b文 #！",
]  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_logits_and_greedy_tokens_are_llama_cpps(tmp_path, name):
    model = build(SPECS[name])
    write(model, None, tmp_path / "m.gguf", "fp32")
    prompt = torch.randint(0, VOCAB, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    found = llama_cpp(tmp_path / "m.gguf", prompts=[prompt], count=20)
    # llama.cpp looks GELU up in a table of fp16
    tolerance = 5e-3 if name in ("gemma3", "gpt2") else 2e-5
    with torch.no_grad():
        theirs, ours, other = torch.tensor(found["logits"][0]), model(torch.tensor([prompt])).logits[0], build(SPECS[name], seed=1)
        assert (theirs - ours).abs().max() < tolerance
        assert (theirs - other(torch.tensor([prompt])).logits[0]).abs().max() > 0.1
    assert found["greedy"][0] == greedy(model, prompt, 20)
    assert [line for line in found["said"] if not any(part in line for part in HARMLESS)] == []


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0", "q4_0"])
def test_every_type_is_opened_and_run(tmp_path, dtype):
    write(build(SPECS["llama"]), None, tmp_path / "m.gguf", dtype)
    back, _ = hub.load(tmp_path / "m.gguf", dtype="fp32")
    prompt = list(range(40))
    theirs = torch.tensor(llama_cpp(tmp_path / "m.gguf", prompts=[prompt])["logits"][0])
    with torch.no_grad():
        ours = back(torch.tensor([prompt])).logits[0]
    # activations are rounded to the type of the weights, or to 8 bits
    assert (theirs - ours).abs().max() < {"fp16": 5e-3, "bf16": 5e-2}.get(dtype, 0.15)


@cache
def tokenizer(kind: str, byte_fallback: bool | None = None) -> Tokenizer:
    sizes = {"byte-bpe": 420, "bpe": 440}
    return train_tokenizer([*TEXTS, *ODD] * 8, kind=kind, vocab_size=sizes.get(kind), min_frequency=1, byte_fallback=byte_fallback)


def file_with(tokenizer: Tokenizer, path: Path) -> Path:
    spec = SPECS["llama"]
    tokens = replace(spec.last.input, vocab_size=tokenizer.vocab_size)
    write(build(replace(spec, decoder=replace(spec.last, input=tokens))), tokenizer, path, "fp32")
    return path


@pytest.mark.parametrize(
    ("kind", "byte_fallback", "texts"),
    [
        ("byte-bpe", None, [*TEXTS, *ODD]),
        ("characters", True, [*TEXTS, *ODD, "未见之字：龘𪚥"]),
        ("characters", False, TEXTS),
        ("bpe", None, TEXTS),
    ],
)
def test_texts_are_cut_and_joined_as_here(tmp_path, kind, byte_fallback, texts):
    mine = tokenizer(kind, byte_fallback)
    ids = [mine.encode(text) for text in texts]
    found = llama_cpp(file_with(mine, tmp_path / "m.gguf"), vocab_only=True, texts=texts, pieces=ids)
    assert found["tokens"] == ids
    assert found["texts"] == [mine.decode(i) for i in ids]
    framed = llama_cpp(tmp_path / "m.gguf", vocab_only=True, texts=texts, special=True)["tokens"]
    assert framed == [[mine.bos, *i] for i in ids]


def test_what_the_writer_remarks_on_is_so(tmp_path):
    unknown = tokenizer("characters", False)
    found = llama_cpp(file_with(unknown, tmp_path / "m.gguf"), vocab_only=True, texts=["天龘龘下"])["tokens"][0]
    assert unknown.encode("天龘龘下") == [found[0], unknown.unk, unknown.unk, found[-1]]
    assert found == [found[0], unknown.unk, found[-1]]
    spaces = train_tokenizer([*TEXTS, "\t\t\t\t\n\n"] * 8, kind="bpe", vocab_size=340, min_frequency=1)
    texts = ["\t\tthe", *TEXTS]
    found = llama_cpp(file_with(spaces, tmp_path / "n.gguf"), vocab_only=True, texts=texts)["tokens"]
    assert found != [spaces.encode(text) for text in texts]
    assert [spaces.decode(ids) for ids in found] == texts


def test_a_story_goes_on_alike_here_in_transformers_and_in_llama_cpp(tmp_path):
    from transformers import AutoModelForCausalLM

    mine = tokenizer("characters", False)
    spec = config.preset("storyteller")
    model = build(replace(spec, decoder=replace(spec.last, input=replace(spec.last.input, vocab_size=mine.vocab_size))))
    prompt = mine.encode(TEXTS[0])
    expected = greedy(model, prompt, 40)
    hub.save(model, mine, tmp_path / "public")
    write(model, mine, tmp_path / "m.gguf", "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "public").eval()
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, min_new_tokens=40, do_sample=False)[0, len(prompt) :]
    assert found.tolist() == expected
    assert llama_cpp(tmp_path / "m.gguf", prompts=[prompt], count=40)["greedy"] == [expected]
    assert len(set(expected)) > 1


PROMPTS = [
    "The capital of France is", "Once upon a time, there was a little", "def fibonacci(n):\n    ", "Water boils at",
    "List three colours:\n1.",
]  # fmt: skip


@cache
def smollm2():
    """The real model as its makers publish it, in 4 bits; fetched by `triform pull smollm2-135m-instruct`."""
    return hub.load("smollm2-135m-instruct")


def _file() -> Path:
    place = hub.locate("smollm2-135m-instruct")
    return place if place.is_file() else next(place.rglob("*.gguf"))


def test_a_real_model_answers_through_its_own_template():
    model, tokenizer = smollm2()
    ids = tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = greedy(model, ids, 12)
    assert "Paris" in tokenizer.decode(answer)
    assert any(end in answer for end in tokenizer.ends)


def test_a_real_model_goes_on_as_in_llama_cpp(tmp_path):
    """In fp32, token for token; in 4 bits along llama.cpp's own path, but where two tokens are all but tied."""
    model, tokenizer = smollm2()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert llama_cpp(_file(), vocab_only=True, texts=PROMPTS + ODD)["tokens"] == [tokenizer.encode(text) for text in PROMPTS + ODD]
    write(model, tokenizer, tmp_path / "m.gguf", "fp32")
    found = llama_cpp(tmp_path / "m.gguf", prompts=prompts, count=50, logits=False)["greedy"]
    quantized = llama_cpp(_file(), prompts=prompts, count=50, logits=False)["greedy"]
    for prompt, path, other in zip(prompts, found, quantized, strict=True):
        with torch.no_grad():
            likeliest = model(torch.tensor([prompt + path])).logits[0, len(prompt) - 1 : -1].argmax(-1)
            logits = model(torch.tensor([prompt + other])).logits[0, len(prompt) - 1 : -1]
        assert likeliest.tolist() == path
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(other)[:, None])[:, 0]
        assert behind.max() < 0.1
        assert (behind > 0).sum() <= 5


def test_a_real_model_gives_transformers_logits():
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model, tokenizer = smollm2()
    theirs = LlamaForCausalLM(LlamaConfig(**load_gguf_checkpoint(str(_file()))["config"])).eval()
    theirs.load_state_dict(load_gguf_checkpoint(str(_file()), return_tensors=True, model_to_load=theirs)["tensors"], strict=False)
    theirs.tie_weights()
    ids = torch.tensor([tokenizer.encode(" ".join(PROMPTS))])
    with torch.no_grad():
        ours = model(ids).logits
        assert (ours - theirs(ids).logits).abs().max() < 1e-4
        assert (ours - theirs(ids.flip(1)).logits).abs().max() > 1
