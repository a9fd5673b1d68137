from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from triform import config, hub
from triform.generate import Sampling, generate, generate_ids
from triform.text import Tokenizer, train_tokenizer

from .conftest import CAUSAL, LINES, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of

PROMPTS = ["话说", "The quick brown fox jumps", "是非成败转头空，青山", "白"]


def uncached(model: Any, ids: list[int], steps: int, source: torch.Tensor | None = None) -> tuple[list[int], torch.Tensor]:
    """Greedy search by whole passes over everything so far: the tokens and their log-probabilities."""
    made: list[int] = []
    log_probs: list[torch.Tensor] = []
    for _ in range(steps):
        now = torch.tensor([ids + made])
        with torch.inference_mode():
            scores = model(now).logits if source is None else model(source, target=now).logits
        best = scores[0, -1].log_softmax(-1).max(-1)
        made.append(int(best.indices))
        log_probs.append(best.values)
    return made, torch.stack(log_probs)


def test_greedy_equals_whole_passes(decoder: Callable[[int], Any]) -> None:
    model = decoder(60)
    ids = [5, 9, 33, 2, 17, 40, 41]
    run = generate_ids(model, torch.tensor([ids]), sampling=Sampling(max_new_tokens=24))[0]
    tokens, log_probs = uncached(model, ids, 24)
    assert run.ids == tokens
    torch.testing.assert_close(torch.tensor(run.log_probs), log_probs, rtol=0, atol=1e-4)
    assert (torch.tensor(run.log_probs) - uncached(model, [*ids[:-2], 40, 42], 24)[1]).abs().max() > 1e-2
    assert run.finish_reason == "length"


def test_encoder_decoder_equals_whole_passes() -> None:
    model = built(encoder_decoder(60))
    source = torch.tensor([[5, 9, 33, 2, 17]])
    run = generate_ids(model, source, sampling=Sampling(max_new_tokens=16), start=3)[0]
    tokens, log_probs = uncached(model, [3], 16, source)
    assert run.ids == tokens
    torch.testing.assert_close(torch.tensor(run.log_probs), log_probs, rtol=0, atol=1e-4)
    assert (torch.tensor(run.log_probs) - uncached(model, [3], 16, source + 1)[1]).abs().max() > 1e-2
    assert (torch.tensor(run.log_probs) - uncached(model, [4], 16, source)[1]).abs().max() > 1e-2


def test_a_batch_equals_its_rows(decoder: Callable[[int], Any]) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = decoder(tokenizer.vocab_size)
    for sampling in (Sampling(max_new_tokens=20), Sampling(max_new_tokens=20, temperature=0.9, top_k=30, repetition_penalty=1.2, seed=7)):
        together = generate(model, tokenizer, PROMPTS, sampling)
        assert len({one.text for one in together}) == len(PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            alone = generate(model, tokenizer, prompt, replace(sampling, seed=None if sampling.seed is None else 7 + row))[0]
            assert alone.ids == together[row].ids
            torch.testing.assert_close(torch.tensor(alone.log_probs), torch.tensor(together[row].log_probs), rtol=0, atol=2e-4)


def test_an_encoder_decoders_batch_equals_its_rows() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(encoder_decoder(tokenizer.vocab_size))
    sampling = Sampling(max_new_tokens=12)
    together = [one.ids for one in generate(model, tokenizer, PROMPTS, sampling)]
    assert together == [generate(model, tokenizer, prompt, sampling)[0].ids for prompt in PROMPTS]
    assert together == [one.ids for one in generate(model, tokenizer, PROMPTS, sampling, batch_size=2)]


def ending(model: Any, eos: int, bias: float) -> Any:
    """The model with its head biased towards ending."""
    spec = replace(model.config, head=replace(model.config.head, bias="learned"))
    other = built(spec)
    with torch.no_grad():
        other.head.bias.zero_()
        other.head.bias[eos] = bias
    return other


@pytest.mark.parametrize("learned", [None, 40])
def test_rows_that_end_leave_the_others_as_they_are(learned: int | None) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    assert tokenizer.eos is not None
    attention = replace(CAUSAL, position=None) if learned else CAUSAL
    model = ending(built(decoder_only(tokenizer.vocab_size, attention, learned=learned)), tokenizer.eos, 5.0)
    sampling = Sampling(max_new_tokens=60, temperature=1.0, seed=3)
    prompts = PROMPTS * 3
    together = generate(model, tokenizer, prompts, sampling)
    lengths = {len(one.ids) for one in together}
    assert len(lengths) > 3
    assert {one.finish_reason for one in together} >= {"stop"}
    for row, (prompt, one) in enumerate(zip(prompts, together, strict=True)):
        assert one.ids == generate(model, tokenizer, prompt, replace(sampling, seed=3 + row))[0].ids
        assert (one.finish_reason == "stop") == (one.ids[-1] == tokenizer.eos)
        assert tokenizer.eos not in one.ids[:-1]


def test_the_longest_length_ends_a_row_wherever_its_neighbours_are() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size, replace(CAUSAL, position=None), learned=24))
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=100))
    assert [len(one.prompt_ids) + len(one.ids) for one in found] == [25] * len(PROMPTS)  # the last token needs no position
    assert {one.finish_reason for one in found} == {"length"}
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert generate(model, tokenizer, prompt, Sampling(max_new_tokens=100))[0].ids == one.ids


def test_an_encoder_decoder_stops_at_its_decoders_longest_length() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(encoder_decoder(tokenizer.vocab_size, learned=20))
    assert len(generate(model, tokenizer, "话说", Sampling(max_new_tokens=100))[0].ids) == 20


@pytest.mark.parametrize("form", [decoder_only, encoder_decoder])
def test_a_prompt_longer_than_the_learned_positions_is_refused(form: Callable[..., config.Transformer]) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    spec = form(tokenizer.vocab_size, learned=8)
    with pytest.raises(ValueError, match=r"has \d+ tokens and the model has 8 learned positions"):
        generate(built(spec), tokenizer, ["话", LINES[4]])


def test_the_end_token_is_in_the_ids_and_not_in_the_text() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    assert tokenizer.eos is not None
    model = ending(built(decoder_only(tokenizer.vocab_size)), tokenizer.eos, 1000.0)
    one = generate(model, tokenizer, "话说")[0]
    assert (one.ids, one.text, one.finish_reason) == ([tokenizer.eos], "", "stop")


def test_streamed_pieces_joined_are_the_text() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size))
    pieces: dict[int, list[str]] = {row: [] for row in range(len(PROMPTS))}
    sampling = Sampling(max_new_tokens=60, temperature=1.2, seed=1)
    found = generate(model, tokenizer, PROMPTS, sampling, on_text=lambda row, piece: pieces[row].append(piece))
    assert ["".join(some) for some in pieces.values()] == [one.text for one in found]
    assert all(len(some) > 3 for some in pieces.values())
    assert found == generate(model, tokenizer, PROMPTS, sampling)


def test_a_stop_string_over_several_tokens_ends_the_row_it_is_in() -> None:
    tokenizer = tokenizer_of("characters")
    model = built(decoder_only(tokenizer.vocab_size))
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=5)
    free = generate(model, tokenizer, PROMPTS, sampling)
    stop = free[1].text[10:14]
    assert all(stop not in one.text for one in free[:1] + free[2:])
    pieces: list[str] = []
    found = generate(model, tokenizer, PROMPTS, replace(sampling, stop=(stop,)), on_text=lambda r, p: pieces.append(p) if r == 1 else None)
    assert found[1].finish_reason == "stop_string"
    assert found[1].text == free[1].text[: free[1].text.index(stop)] == "".join(pieces)
    assert found[1].ids == free[1].ids[: len(found[1].ids)]
    assert [found[row].ids for row in (0, 2, 3)] == [free[row].ids for row in (0, 2, 3)]


def test_an_empty_prompt_begins_with_bos() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size))
    found = generate(model, tokenizer, ["", "话说"], Sampling(max_new_tokens=5))
    assert found[0].prompt_ids == [tokenizer.bos]
    assert found[1].prompt_ids[0] == tokenizer.bos
    assert tokenizer.eos not in found[1].prompt_ids
    bare = train_tokenizer(LINES, kind="characters", special_tokens=["[UNK]"], min_frequency=1)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        generate(built(decoder_only(bare.vocab_size)), bare, ["话说", ""])


def test_what_an_encoder_reads_ends_but_does_not_begin() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    found = generate(built(encoder_decoder(tokenizer.vocab_size)), tokenizer, "话说", Sampling(max_new_tokens=2))[0]
    assert found.prompt_ids == [*tokenizer.encode("话说"), tokenizer.eos]


def test_the_decoders_start_can_be_given() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(encoder_decoder(tokenizer.vocab_size))
    usual = generate(model, tokenizer, "话说", Sampling(max_new_tokens=8))
    assert generate(model, tokenizer, "话说", Sampling(max_new_tokens=8), start=tokenizer.bos) == usual
    assert generate(model, tokenizer, "话说", Sampling(max_new_tokens=8), start=tokenizer.pad) != usual


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    spec = decoder_only(tokenizer.vocab_size)
    assert spec.decoder is not None
    block = replace(spec.decoder.pattern[0], dropout=0.5)
    model = built(replace(spec, decoder=replace(spec.decoder, pattern=(block,)))).train()
    first = generate(model, tokenizer, "话说", Sampling(max_new_tokens=8))
    assert first == generate(model, tokenizer, "话说", Sampling(max_new_tokens=8))
    assert model.training


def test_wrong_models_are_told_what_fits() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    size = tokenizer.vocab_size
    with pytest.raises(ValueError, match="`triform fill` fits it"):
        generate(built(encoder_only(size)), tokenizer, "话")
    with pytest.raises(ValueError, match="`triform classify` fits it"):
        generate(built(encoder_only(size, config.Classify(labels=2))), tokenizer, "话")
    with pytest.raises(ValueError, match="use the model's own tokenizer"):
        generate(built(decoder_only(20)), tokenizer, "话")


def test_a_cache_beyond_the_memory_is_refused_before_it_is_taken() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        generate(built(decoder_only(tokenizer.vocab_size)), tokenizer, "话", Sampling(max_new_tokens=10**12))


def test_a_prefix_model_reads_its_prompt_both_ways() -> None:
    prefix = config.Attention(heads=2, mask="prefix", position=config.Rotary())
    ids = torch.tensor([[5, 9, 33, 2, 17]])
    model = built(decoder_only(60, prefix))
    causal = built(decoder_only(60, replace(prefix, mask="causal")))
    assert generate_ids(model, ids)[0].log_probs[0] != pytest.approx(generate_ids(causal, ids)[0].log_probs[0], abs=1e-3)


def perturbed(reference: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return reference.eval()


def reference_gpt2(tokenizer: Tokenizer) -> Any:
    settings = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos, pad_token_id=tokenizer.pad, tie_word_embeddings=False,
    )  # fmt: skip
    return perturbed(transformers.GPT2LMHeadModel(settings))


def reference_t5(tokenizer: Tokenizer) -> Any:
    settings = transformers.T5Config(
        vocab_size=tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad, decoder_start_token_id=tokenizer.pad, tie_word_embeddings=False,
    )  # fmt: skip
    return perturbed(transformers.T5ForConditionalGeneration(settings))


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("make", [reference_gpt2, reference_t5])
def test_greedy_equals_transformers(make: Callable[[Tokenizer], Any], penalty: float, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    reference = make(tokenizer)
    reference.save_pretrained(tmp_path)
    model = hub.load(tmp_path)[0]
    seen: list[tuple[int, ...]] = []
    for prompt in PROMPTS:
        one = generate(model, tokenizer, prompt, Sampling(max_new_tokens=30, repetition_penalty=penalty), start=tokenizer.pad)[0]
        ids = torch.tensor([one.prompt_ids])
        found = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, repetition_penalty=penalty,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        theirs = found.sequences[0, 1 if make is reference_t5 else ids.shape[1] :]
        assert one.ids == theirs.tolist()
        log_probs = torch.stack(found.logits)[:, 0].log_softmax(-1).gather(-1, theirs[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.log_probs), log_probs, rtol=0, atol=1e-4)
        seen.append(tuple(one.ids))
    assert len(set(seen)) > 1


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def test_texts_and_conversations_stand_in_one_call() -> None:
    tokenizer = Tokenizer(tokenizer_of("byte-bpe").backend)
    tokenizer.chat_template = CHAT
    model, sampling = built(decoder_only(tokenizer.vocab_size)), Sampling(max_new_tokens=6)
    talk = [{"role": "user", "content": "话说"}]
    mixed = generate(model, tokenizer, ["天下", talk, "白发"], sampling)
    alone = generate(model, tokenizer, ["天下", "白发"], sampling)
    assert [found.prompt_ids for found in mixed[::2]] == [found.prompt_ids for found in alone]
    assert tokenizer.decode(mixed[1].prompt_ids) == "user: 话说\nassistant:"
    assert mixed[1].ids == generate(model, tokenizer, [talk], sampling)[0].ids != mixed[0].ids
    tokenizer.chat_template = None
    for wrong in ([talk], [7]):
        with pytest.raises(ValueError, match=r".") as error:
            generate(model, tokenizer, wrong, sampling)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
