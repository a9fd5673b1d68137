"""Conversations to train on: which tokens the assistant wrote, as transformers says it, and for templates that do not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triform.text import Tokenizer, chat
from triform.text.templates import TEMPLATES as OWN
from triform.text.templates import read_template
from triform.text.turns import encode_dialogue, encode_exchange, encode_prompt

from . import public

TEMPLATES = json.loads(Path(__file__).with_name("chat_templates.json").read_text("utf-8"))
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
SYSTEM = {"role": "system", "content": "Be brief."}
USER, AGAIN = {"role": "user", "content": "天下大势 the cat? "}, {"role": "user", "content": "again<|im_end|>"}
ANSWER, LAST = {"role": "assistant", "content": "the dog."}, {"role": "assistant", "content": "分久必合 <|eot_id|>"}
TALK = [SYSTEM, USER, ANSWER, AGAIN, LAST]
_HEADER = "<|start_header_id|>' + m.role + '<|end_header_id|>\n\n"
SAYING = {
    "chatml": OWN["chatml"],
    "plain": OWN["plain"],
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '" + _HEADER + "' }}{% if m.role == 'assistant' %}{% generation %}"
              "{{ m.content|trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ m.content|trim + '<|eot_id|>' }}{% endif %}{% endfor %}",
    "qwen": "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{% generation %}"
            "{{- '<think>\n\n</think>\n\n' + m.content }}{{- '<|im_end|>\n' }}{% endgeneration %}{%- else %}"
            "{{- m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages if m.role != 'system' %}"
             "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
             "{% if m.role == 'assistant' %}{% generation %}{{ m.content|trim }}{% endgeneration %}"
             "{% else %}{{ m.content|trim }}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = public.write(tmp_path_factory.mktemp("turns"), public.files("qwen2"))
    added = {str(420 + i): {"content": token, "special": True} for i, token in enumerate(SPECIAL)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "</s>"}
    return public.write(made, {"tokenizer_config.json": json.dumps(config)})


@pytest.fixture
def ours(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder, tmp_path_factory):
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(Tokenizer.load(folder).save(tmp_path_factory.mktemp("saved")))


def learned(tokenizer: Tokenizer, encoded: chat.EncodedChat) -> list[str]:
    """The runs of tokens that the assistant wrote, as text."""
    runs: list[list[int]] = []
    for before, token, own in zip([False, *encoded.assistant], encoded.ids, encoded.assistant, strict=False):
        if own:
            if not before:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize("name", SAYING)
def test_ids_and_mask_are_those_of_transformers(ours, theirs, name) -> None:
    ours.chat_template = theirs.chat_template = SAYING[name]
    talk = [SYSTEM, USER, ANSWER, {"role": "user", "content": "again"}, {"role": "assistant", "content": "分久必合"}]
    expected = theirs.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
    found = chat.encode_turns(ours, talk)
    assert found.ids == expected["input_ids"]
    assert [int(one) for one in found.assistant] == expected["assistant_masks"]
    assert 0 < sum(found.assistant) < len(found.ids)
    other = theirs.apply_chat_template(talk[:3], return_assistant_tokens_mask=True, return_dict=True)
    assert other["assistant_masks"] != expected["assistant_masks"]


@pytest.mark.parametrize("name", SAYING)
def test_what_ends_a_turn_is_learned_even_where_a_template_leaves_it_out(ours, name) -> None:
    ours.chat_template = SAYING[name]
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "</s>"}.get(name, "<|im_end|>")
    runs = learned(ours, encode_dialogue(ours, TALK))
    assert [run.rstrip().endswith(end) for run in runs] == [True, True]
    exact = learned(ours, chat.encode_turns(ours, TALK))
    assert (exact == runs) == (name != "gemma")


ENDS = {"llama3": "<|eot_id|>", "llama3.2": "<|eot_id|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "zephyr": "</s>"}


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "qwen3", "smollm2", "llama3", "llama3.2", "gemma", "gemma3", "zephyr"])
def test_templates_that_do_not_say_are_asked_by_their_prefixes(ours, name) -> None:
    ours.chat_template = TEMPLATES[name]
    talk = TALK[1:] if name == "gemma" else TALK
    end = ENDS.get(name, "<|im_end|>")
    first, last = learned(ours, encode_dialogue(ours, talk))
    assert first == "the dog." + end
    assert last == ("<think>\n\n</think>\n\n" if name == "qwen3" else "") + "分久必合 <|eot_id|>" + end
    assert encode_dialogue(ours, talk).ids == ours.encode_chat(talk, generation_prompt=False)


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_they_learn_what_the_same_template_says_with_blocks(ours, name) -> None:
    talk = TALK[1:]
    ours.chat_template = SAYING[name]
    said = encode_dialogue(ours, talk)
    opening = "<start_of_turn>model\n" if name == "gemma" else _HEADER.replace("' + m.role + '", "assistant")
    without = SAYING[name].replace("{% generation %}", "").replace("{% endgeneration %}", "")
    ours.chat_template = without + "{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}"
    assert encode_dialogue(ours, talk) == said


@pytest.mark.parametrize("name", ["chatml", "qwen3", "smollm2"])
def test_answers_to_a_prompt_of_several_messages(ours, name) -> None:
    for template in (TEMPLATES[name], SAYING["chatml"]):
        ours.chat_template = template
        whole, only = encode_dialogue(ours, TALK), encode_dialogue(ours, TALK, after=4)
        assert only.ids == whole.ids
        assert learned(ours, only) == learned(ours, whole)[1:]


def test_without_a_template_an_answer_goes_on_with_the_prompt(ours) -> None:
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " the dog"}]
    found = encode_dialogue(ours, talk)
    assert found.ids == [*ours.encode("the cat"), *ours.encode(" the dog"), ours.eos]
    assert learned(ours, found) == [" the dog</s>"]
    assert encode_prompt(ours, talk[:1]) == ours.encode("the cat")
    for messages in (TALK, talk + talk, talk[1:]):
        with pytest.raises(ValueError, match="without a chat template"):
            encode_dialogue(ours, messages)


def test_what_an_encoder_reads_and_a_decoder_writes(tmp_path) -> None:
    ours = Tokenizer.load(public.write(tmp_path, public.files("t5")))
    source, target = encode_exchange(ours, [{"role": "user", "content": "the cat"}], "the dog")
    assert source == [*ours.encode("the cat"), ours.eos]
    assert target == ours.encode("the dog")
    ours.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"
    source, _ = encode_exchange(ours, [SYSTEM, {"role": "user", "content": "the cat"}], "the dog")
    assert source == ours.encode_chat([SYSTEM, {"role": "user", "content": "the cat"}])


def test_a_template_is_named_or_a_file(ours, tmp_path) -> None:
    assert read_template("chatml", ours) == OWN["chatml"]
    (tmp_path / "a.jinja").write_text("{{ messages }}", "utf-8")
    assert read_template(str(tmp_path / "a.jinja"), ours) == "{{ messages }}"
    (tmp_path / "b.jinja").write_text("{% for", "utf-8")
    with pytest.raises(ValueError, match=r"b\.jinja: the chat template is no Jinja template"):
        read_template(str(tmp_path / "b.jinja"), ours)
    with pytest.raises(ValueError, match="expected chatml or plain, or a file"):
        read_template("alpaca", ours)
    bare = Tokenizer.load(public.write(tmp_path, public.files("t5")))
    with pytest.raises(ValueError, match=r"chatml writes tokens that the tokenizer has not; set tokenizer\.add"):
        read_template("chatml", bare)
