"""The real weights of the catalogue: pulled, loaded, and held against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import triform
from triform import hub
from triform.generate import Beams, Sampling, embed, generate

SENTENCES = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
MORE = ["今天是个好日子。", "x", "the same words " * 120]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm() -> Any:
    return triform.load("minilm")


def test_the_sentence_encoder_gives_the_published_cosines(minilm: Any) -> None:
    vectors = embed(*minilm, SENTENCES)
    cosines = vectors[0] @ vectors[1:].T
    assert cosines.tolist() == pytest.approx([0.6946, 0.9429, 0.2569], abs=1e-3)
    turned = embed(minilm[0], minilm[1], [text[::-1] for text in SENTENCES])
    assert (turned[0] @ turned[1:].T).tolist() != pytest.approx([0.6946, 0.9429, 0.2569], abs=1e-3)


def test_the_sentence_encoder_equals_the_reference(minilm: Any) -> None:
    place = hub.locate("minilm")
    tokenizer, reference = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    batch = tokenizer([*SENTENCES, *MORE], padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = reference(**batch).last_hidden_state
    seen = batch["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((states * seen).sum(1) / seen.sum(1), dim=-1)
    with pytest.warns(UserWarning, match="1 of 7 texts are longer than 256 tokens"):
        found = embed(*minilm, [*SENTENCES, *MORE])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert float((found - torch.nn.functional.normalize(states[:, 0], dim=-1)).abs().max()) > 1e-2  # another pooling


def test_the_chat_model_answers() -> None:
    model, tokenizer = triform.load("smollm2-135m-instruct")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (found,) = generate(model, tokenizer, [question], Sampling(max_new_tokens=40))
    assert "Paris" in found.text
    assert found.finish_reason == "stop"
    assert tokenizer.decode(found.ids[-1:], skip_special=False) == "<|im_end|>"


QUESTIONS = ["What is the capital of France?", "Name three colours of the rainbow, and nothing else.", "Write one sentence about the sea."]


def test_the_chat_model_says_what_the_reference_says(tmp_path: Path) -> None:
    """Greedily and with beams, three questions of unlike length together; a tie would be at 1e-4, the answers' gaps are wider."""
    model, tokenizer = triform.load("smollm2-135m-instruct")
    hub.save(model, tokenizer, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.encode_chat(messages) for messages in asked]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    ends = tokenizer.ends or [tokenizer.eos]
    plain = {"max_new_tokens": 40, "eos_token_id": ends, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}

    def theirs(**how: Any) -> Any:
        return reference.generate(input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(**plain | how))

    def same(found: list[Any], expected: Any) -> None:
        for one, row in zip(found, expected.sequences[:, width:].tolist(), strict=True):
            assert one.ids == row[: len(one.ids)]
            assert set(row[len(one.ids) :]) <= {0, *ends}  # what it fills with

    greedy = generate(model, tokenizer, asked, Sampling(max_new_tokens=40))
    same(greedy, theirs(do_sample=False))
    beams = Beams(num_beams=3, num_return_sequences=2, length_penalty=0.7)
    found = generate(model, tokenizer, asked, Sampling(max_new_tokens=40, no_repeat_ngram=4, search=beams))
    expected = theirs(do_sample=False, num_beams=3, num_return_sequences=2, length_penalty=0.7, no_repeat_ngram_size=4)
    same(found, expected)
    assert [one.score for one in found] == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4, abs=1e-4)
    assert [one.ids for one in found[::2]] != [one.ids for one in greedy]
