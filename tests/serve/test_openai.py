"""OpenAI's own client against the server."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import OpenAI
from served import TEMPLATES, Running, scripted_writer, serving, translator

from triform import generate
from triform.generate import Sampling

ASK: list[Any] = [{"role": "user", "content": "却说曹操"}]
PLACE: Any = {"type": "object", "properties": {"place": {"enum": ["长安", "洛阳"]}}, "required": ["place"], "additionalProperties": False}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "The weather of a place", "parameters": PLACE}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.client()


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "judge", "vectors", "filler", "tagger", "reader", "seer"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="no model is named"):
        client.models.retrieve("a/b")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_chat_gives_what_generate_gives(server: Running, client: OpenAI, limit: str) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, **{limit: 12})
    writer = server.models.by_name["tiny"]
    wanted = generate.generate(writer.model, writer.tokenizer, [ASK], Sampling(max_new_tokens=12))[0]
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == ("length" if wanted.finish_reason == "length" else "stop")
    assert found.usage.prompt_tokens == len(wanted.prompt_ids)
    assert found.usage.completion_tokens == len(wanted.ids)
    assert found.usage.total_tokens == len(wanted.prompt_ids) + len(wanted.ids)


def test_a_stream_is_the_whole_in_pieces(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": ASK, "seed": 5, "max_tokens": 24, "logprobs": True, "top_logprobs": 2, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, tokens, ends = ["", ""], [0, 0], [None, None]
    usage = None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert tokens == [len(choice.logprobs.content) for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_log_probabilities_are_the_models(client: OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    for token in found.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs)
        assert token.token.encode() == bytes(token.bytes) or "\ufffd" in token.token
    content = b"".join(bytes(token.bytes) for token in found.choices[0].logprobs.content).decode(errors="ignore")
    assert content.startswith((found.choices[0].message.content or "").replace("\ufffd", "")[:1])


def test_seeds_repeat_and_differ(client: OpenAI) -> None:
    found = [client.chat.completions.create(model="tiny", messages=ASK, seed=seed, max_tokens=16) for seed in (1, 1, 2, -7)]
    said = [one.choices[0].message.content for one in found]
    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_a_bias_bars_and_a_stop_string_stops(server: Running, client: OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 24}
    plain = client.chat.completions.create(**options, logprobs=True).choices[0]
    writer = server.models.by_name["tiny"]
    first = generate.generate(writer.model, writer.tokenizer, [ASK], Sampling(max_new_tokens=1))[0].ids[0]
    barred = client.chat.completions.create(**options, logprobs=True, logit_bias={str(first): -100}).choices[0]
    assert plain.logprobs.content[0].bytes != barred.logprobs.content[0].bytes
    at = next(i for i, letter in enumerate(plain.message.content) if i > 1 and letter not in plain.message.content[:i])
    stopped = client.chat.completions.create(**options, stop=[plain.message.content[at]]).choices[0]
    assert stopped.message.content == plain.message.content[:at]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_fits_its_schema(client: OpenAI, stream: bool) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["曹操", "刘备"]}, "old": {"type": "boolean"}}, "required": ["name", "old"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    options: Any = {"model": "tiny", "messages": ASK, "response_format": form, "seed": 3, "max_tokens": 250, "logit_bias": {}}
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True))
    else:
        text = client.chat.completions.create(**options).choices[0].message.content
    found = json.loads(text)
    assert found["name"] in ("曹操", "刘备")
    assert found["old"] in (True, False)


def test_any_json_object(client: OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASK, response_format={"type": "json_object"}, seed=1, max_tokens=40)
    assert found.choices[0].message.content.lstrip().startswith("{")


def test_a_schema_that_cannot_be_kept_to_is_refused(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=ASK, response_format=form)


# Tools

CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "长安"}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_found_in_the_text(stream: bool) -> None:
    with serving(scripted_writer(f"I look.\n{CALL}\n{CALL}")) as server:
        options: Any = {"model": "scripted", "messages": ASK, "tools": [WEATHER]}
        calls, said, end = [], "", None
        if stream:
            for chunk in server.client().chat.completions.create(**options, stream=True):
                calls += chunk.choices[0].delta.tool_calls or []
                said += chunk.choices[0].delta.content or ""
                end = chunk.choices[0].finish_reason or end
            assert [call.index for call in calls] == [0, 1]
        else:
            choice = server.client().chat.completions.create(**options).choices[0]
            calls, said, end = choice.message.tool_calls, choice.message.content, choice.finish_reason
        assert said.strip() == "I look."
        assert end == "tool_calls"
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [("weather", {"place": "长安"})] * 2
        assert len({call.id for call in calls}) == 2


LLAMA = TEMPLATES["llama3.2"] + """{{- '{"name": function name, "parameters": dictionary}' if false }}"""
MISTRAL = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.content or '[TOOL_CALLS]' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAMA, '{"name": "weather", "parameters": {"place": "洛阳"}}'),
        (MISTRAL, '[{"name": "weather", "arguments": {"place": "洛阳"}}]'),
    ],
)
def test_other_ways_of_calling(template: str, text: str) -> None:
    with serving(scripted_writer(text, template=template)) as server:
        choice = server.client().chat.completions.create(model="scripted", messages=ASK, tools=[WEATHER]).choices[0]
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"place": "洛阳"}
        assert choice.message.content is None


def test_one_call_at_a_time() -> None:
    with serving(scripted_writer(CALL + CALL)) as server:
        found = server.client().chat.completions.create(model="scripted", messages=ASK, tools=[WEATHER], parallel_tool_calls=False)
        assert len(found.choices[0].message.tool_calls) == 1


def test_a_template_sees_tools_and_earlier_calls() -> None:
    with serving(scripted_writer("It is warm.")) as server:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "长安"}'}}
        told: list[Any] = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "29 °C"}]
        talk = ASK + told
        server.client().chat.completions.create(model="scripted", messages=talk, tools=[WEATHER])
        writer = server.models.by_name["scripted"]
        prompt = writer.tokenizer.decode(writer.engine.asked[0].ids, skip_special=False)
        assert '{"name": "weather", "arguments": {"place": "长安"}}' in prompt
        assert "The weather of a place" in prompt
        assert "29 °C" in prompt
        server.client().chat.completions.create(model="scripted", messages=ASK, tools=[WEATHER], tool_choice="none")
        assert "The weather" not in writer.tokenizer.decode(writer.engine.asked[1].ids, skip_special=False)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_can_be_demanded(client: OpenAI, choice: Any, stream: bool) -> None:
    tools = [WEATHER, CLOCK] if choice == "required" else [WEATHER]
    options: Any = {"model": "tiny", "messages": ASK, "tools": tools, "tool_choice": choice, "seed": 2, "max_tokens": 250}
    if stream:
        chunks = client.chat.completions.create(**options, stream=True)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    else:
        calls = client.chat.completions.create(**options).choices[0].message.tool_calls
    assert len(calls) == 1
    assert calls[0].function.name in ("weather", "clock")
    assert isinstance(json.loads(calls[0].function.arguments), dict)


def test_a_model_without_tools_says_so() -> None:
    with serving(scripted_writer("no", template="chatml")) as server, pytest.raises(openai.BadRequestError, match="does not know tools"):
        server.client().chat.completions.create(model="scripted", messages=ASK, tools=[WEATHER])


# The other endpoints


def test_completions_of_several_prompts(server: Running, client: OpenAI) -> None:
    prompts = ["却说", "话说天下"]
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, n=2, echo=True)
    writer = server.models.by_name["tiny"]
    wanted = [one.text for one in generate.generate(writer.model, writer.tokenizer, prompts, Sampling(max_new_tokens=6))]
    assert [choice.text for choice in found.choices] == [prompts[0] + wanted[0]] * 2 + [prompts[1] + wanted[1]] * 2
    assert found.usage.completion_tokens == 24


def test_completions_stream_with_log_probabilities(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "话说", "max_tokens": 10, "seed": 4, "logprobs": 2}
    whole = client.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.logprobs.tokens] == whole.logprobs.tokens
    assert len(whole.logprobs.token_logprobs) == 10
    assert chunks[-1].finish_reason == "length"


def _log_probs(server: Running, ids: list[int]) -> torch.Tensor:
    model = server.models.by_name["tiny"].model
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return found


@pytest.mark.parametrize("form", ["text", "ids"])
def test_a_prompt_is_scored_and_not_gone_on_with(server: Running, client: OpenAI, form: str) -> None:
    text = "话说 the quick fox😀"
    writer: Any = server.models.by_name["tiny"]
    ids = writer.read_prompts([text])[0].ids
    assert len(ids) == 1 + len(writer.tokenizer.encode(text)), "a text begins with [BOS]"
    prompt: Any = text if form == "text" else ids
    found = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=2)
    choice, expected = found.choices[0], _log_probs(server, ids)
    assert (choice.text, choice.finish_reason, found.usage.completion_tokens) == (text, "length", 0)
    assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
    wanted = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    assert choice.logprobs.token_logprobs[1:] != pytest.approx(wanted[::-1], abs=1e-4)
    columns = (choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs)
    for token, chance, top in list(zip(*columns, strict=True))[1:]:
        assert top[token] == chance
        assert 2 <= len(top) <= 3
    offsets = [*choice.logprobs.text_offset, len(text)]
    for token, start, end in list(zip(choice.logprobs.tokens, offsets, offsets[1:], strict=False))[1:]:
        assert token.startswith("bytes:") or token == text[start:end]
    assert offsets[:2] == [0, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_prompt_is_scored_before_its_answer(server: Running, client: OpenAI, count: int) -> None:
    prompts, writer = ["却说曹操", "话说天下大势"], server.models.by_name["tiny"]
    options: Any = {"model": "tiny", "prompt": prompts, "max_tokens": 5, "seed": 2, "logprobs": 1, "n": count}
    options["extra_body"] = {"prompt_logprobs": 3}
    whole = client.completions.create(**options, echo=True).choices
    bare = client.completions.create(**options).choices
    streamed: list[list[Any]] = [[] for _ in whole]
    for chunk in client.completions.create(**options, echo=True, stream=True):
        streamed[chunk.choices[0].index].append(chunk.choices[0])
    for place, (one, alone, chunks) in enumerate(zip(whole, bare, streamed, strict=True)):
        prompt = prompts[place // count]
        ids = writer.read_prompts([prompt])[0].ids
        assert one.text == prompt + alone.text == "".join(chunk.text for chunk in chunks)
        assert one.logprobs.tokens == [token for chunk in chunks for token in chunk.logprobs.tokens]
        assert one.logprobs.token_logprobs[: len(ids)] == [None, *_own(one.prompt_logprobs, ids)]
        assert one.logprobs.tokens[len(ids) :] == alone.logprobs.tokens
        assert one.logprobs.text_offset[len(ids)] == len(prompt) + alone.logprobs.text_offset[0]
        assert one.prompt_logprobs == alone.prompt_logprobs == chunks[0].prompt_logprobs
        expected = _log_probs(server, ids)
        for row, told in zip(expected, one.prompt_logprobs[1:], strict=False):
            ranked = {int(token): entry["rank"] for token, entry in told.items()}
            assert {token for token, rank in ranked.items() if rank <= 3} == set(row.topk(3).indices.tolist())
            assert all(rank == 1 + int((row > row[token]).sum()) for token, rank in ranked.items())


def _own(told: list[Any], ids: list[int]) -> list[float]:
    return [entry[str(token)]["logprob"] for entry, token in zip(told[1:], ids[1:], strict=True)]


def test_a_text_without_echo_is_not_scored(client: OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="话说", max_tokens=3, logprobs=0).choices[0]
    assert len(found.logprobs.tokens) == 3
    assert not hasattr(found, "prompt_logprobs")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_tokens": 0}, "max_tokens: expected at least 1; 0 goes with echo"),
        ({"prompt": [1, 999999]}, "prompt: expected token ids below"),
        ({"prompt": [[1, 2], "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt: the prompt is empty"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": 5}, "prompt: "),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_mistakes_in_completions_are_told(client: OpenAI, changes: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**({"model": "tiny", "prompt": "a"} | changes))
    assert caught.value.body["message"].startswith(says)


def test_an_encoder_decoder_scores_no_prompt() -> None:
    with serving(translator()) as server:
        client = server.client()
        assert client.completions.create(model="both", prompt="a", max_tokens=3, echo=True).choices[0].text.startswith("a")
        with pytest.raises(openai.BadRequestError, match="echo: expected no scores of the prompt"):
            client.completions.create(model="both", prompt="a", echo=True, logprobs=1)


def test_a_suffix_is_refused_in_words(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix: texts are continued here"):
        client.completions.create(model="tiny", prompt="a", suffix="b")


def test_embeddings_as_numbers_and_as_base64(server: Running, client: OpenAI) -> None:
    texts = ["分久必合", "The quick brown fox", "分久必合"]
    found = client.embeddings.create(model="vectors", input=texts)  # asks for base64, and unpacks it
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    raw = server.post("/v1/embeddings", {"input": texts[0], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    rows = np.array([one.embedding for one in plain.data])
    np.testing.assert_allclose(np.array([one.embedding for one in found.data]), rows, atol=1e-7)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), rows[0], atol=1e-6)
    np.testing.assert_allclose((rows * rows).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)
    assert abs(rows[0] @ rows[1]) < 0.999


def test_moderation_is_the_named_classifier(client: OpenAI, server: Running) -> None:
    found = client.moderations.create(input=["房间很干净", "话说天下"])
    judged = server.post("/v1/classify", {"input": ["房间很干净", "话说天下"]}).json()["results"]
    for one, other in zip(found.results, judged, strict=True):
        assert one.flagged == (other["label"] != "fine")
        assert set(json.loads(one.model_dump_json())["category_scores"]) >= {"rude", "violent"}


def test_masks_are_filled(server: Running) -> None:
    found = server.post("/v1/fill-mask", {"input": "话说[MASK]下", "top": 3}).json()["results"][0]
    assert "[MASK]" not in found["text"]
    assert len(found["masks"][0]) == 3


def test_names_and_answers_are_found(server: Running) -> None:
    text = "却说曹操引兵渡江。" * 20
    found = server.post("/v1/token-classify", {"input": [text, "a"]}).json()
    assert len(found["results"]) == 2
    assert all(text[one["start"] : one["end"]] == one["text"] and one["label"] in ("PER", "0") for one in found["results"][0])
    found = server.post("/v1/answer", {"question": "谁？", "context": text, "top": 2}).json()
    assert len(found["answers"]) == 2
    assert all(text[one["start"] : one["end"]] == one["text"] for one in found["answers"])


# Errors and the client's classes for them


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "no model is named 'nobody'"),
        ({"model": "judge"}, openai.BadRequestError, "/v1/classify"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, openai.BadRequestError, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError, "no content"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 257}, openai.BadRequestError, "at most 256"),
        ({"n": 17}, openai.BadRequestError, "at most 16"),
        ({"top_logprobs": 3}, openai.BadRequestError, "expected logprobs true"),
        ({"logit_bias": {"999999": 1.0}}, openai.BadRequestError, ""),
        ({"messages": [{"role": "user", "content": "长" * 2000}]}, openai.BadRequestError, "at most 1,024"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tools"),
    ],
)
def test_mistakes_are_told(client: OpenAI, changes: Any, error: type[openai.APIStatusError], says: str) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": "tiny", "messages": ASK} | changes))
    assert says in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]


def test_too_long_has_its_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="vectors", input="长" * 200)
    assert caught.value.code == "context_length_exceeded"
