"""Instruction tuning: what is learned of a conversation, and how conversations are packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from collating import batch, samples

from triform.nn import IGNORE, Layout
from triform.objectives import Instruction, build_objective
from triform.text import Tokenizer, train_tokenizer
from triform.text.templates import TEMPLATES

ROWS = [
    {"messages": [{"role": "user", "content": "天下"}, {"role": "assistant", "content": "大势"}]},
    {"instruction": "分久", "input": "必合", "output": "合久必分。"},
    {"conversations": [{"from": "human", "value": "汉"}, {"from": "gpt", "value": "楚"}, {"from": "human", "value": "秦"},
                       {"from": "gpt", "value": "周"}]},
    {"prompt": "一统", "response": "三国"},
]  # fmt: skip
TEXT = ["天下大势分久必合合久必分。汉楚秦周一统三国\nassistantusersystem" * 3]


@pytest.fixture
def tokenizer() -> Tokenizer:
    found = train_tokenizer(TEXT, kind="characters", min_frequency=1)
    found.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    found.chat_template = TEMPLATES["chatml"]
    return found


def learned(tokenizer: Tokenizer, labels) -> str:
    return tokenizer.decode([int(i) for i in labels if i != IGNORE], skip_special=False).replace(" ", "")


def test_the_assistant_is_learned_and_what_ends_its_turns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Instruction(length=64, packing=False), tokenizer, ROWS, tmp_path)
    made = batch(objective, found)
    assert [learned(tokenizer, row) for row in made.labels] == [
        "大势<|im_end|>", "合久必分。<|im_end|>", "楚<|im_end|>周<|im_end|>", "三国<|im_end|>",
    ]  # fmt: skip
    assert made.layout is None
    for inputs, labels in zip(made.inputs, made.labels, strict=True):
        assert all(int(b) in (int(a), IGNORE) for a, b in zip(inputs[1:], labels[:-1], strict=True))


def test_packed_conversations_cost_what_they_cost_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiny.build(tiny.decoder("rotary"))
    packed, found = samples(Instruction(length=80), tokenizer, ROWS, tmp_path / "a")
    alone, each = samples(Instruction(length=80, packing=False), tokenizer, ROWS, tmp_path / "b")
    made = batch(packed, found)
    assert len(found) < len(each)
    assert made.layout is not None
    small = lambda b: b.inputs.remainder(tiny.VOCAB)  # noqa: E731 the tiny model has fewer tokens
    together, apart = batch(packed, found), batch(alone, each)
    for b in (together, apart):
        b.inputs, b.labels = small(b), b.labels.where(b.labels == IGNORE, b.labels.remainder(tiny.VOCAB))
    assert together.count == apart.count
    one, other = (float(objective.loss(model, b).total.detach()) for objective, b in ((packed, together), (alone, apart)))
    assert abs(one - other) < 1e-4 * abs(other)
    together.layout = Layout()
    assert abs(float(packed.loss(model, together).total.detach()) - other) > 1e-2 * abs(other)  # where they see each other it is another


def test_each_answer_is_a_sample_of_an_encoder_decoder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Instruction(length=64, target_length=8), tokenizer, ROWS, tmp_path)
    made = batch(objective, found)
    assert [learned(tokenizer, row) for row in made.labels] == ["大势[EOS]", "合久必分。[EOS]", "楚[EOS]", "周[EOS]", "三国[EOS]"]
    asked = tokenizer.decode(made.inputs[3], skip_special=False).replace(" ", "")
    assert asked.startswith("<|im_start|>user\n汉<|im_end|>\n<|im_start|>assistant\n楚<|im_end|>\n<|im_start|>user\n秦")
    tokenizer.chat_template = None
    objective, found = samples(Instruction(length=3, target_length=3), tokenizer, ROWS, tmp_path / "plain")
    made = batch(objective, found)
    assert [learned(tokenizer, row) for row in made.labels] == ["大势[EOS]", "合久[EOS]", "楚[EOS]", "周[EOS]", "三国[EOS]"]
    assert made.inputs.shape[1] == 3


def test_what_is_cut_before_the_assistant_says_anything_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = {"prompt": "天下" * 30, "response": "大势"}
    _, found = samples(Instruction(length=32), tokenizer, [*ROWS, long], tmp_path)
    assert sum(int(found[i]["document"].max()) + 1 for i in range(len(found))) == len(ROWS)


def test_the_first_example_shows_what_is_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Instruction(length=64, packing=False), tokenizer, ROWS, tmp_path)
    runs = [(text.replace(" ", ""), own) for text, own in objective.example(found[2])]
    header = "<|im_end|>\n<|im_start|>"
    assert runs == [
        (f"<|im_start|>user\n汉{header}assistant\n", False), ("楚<|im_end|>", True),
        ("\n<|im_start|>user\n秦" + header + "assistant\n", False), ("周<|im_end|>", True), ("\n", False),
    ]  # fmt: skip
    objective, found = samples(Instruction(length=64, target_length=8), tokenizer, ROWS[3:], tmp_path / "pairs")
    assert [(text.replace(" ", ""), own) for text, own in objective.example(found[0])][1] == ("三国[EOS]", True)


def test_models_and_templates_that_do_not_fit_are_refused(tokenizer: Tokenizer) -> None:
    objective = build_objective(Instruction(length=16), tokenizer)
    objective.check(tiny.decoder())
    with pytest.raises(ValueError, match="Instruction without target_length: expected a model that is decoder-only"):
        objective.check(tiny.encoder_decoder())
    build_objective(Instruction(length=16, target_length=8), tokenizer).check(tiny.encoder_decoder())
    with pytest.raises(ValueError, match="expected attention whose mask is causal or prefix"):
        objective.check(tiny.decoder(mask="bidirectional"))
    lines = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = lines + "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(ValueError, match="ends the assistant's turn with a token at which generation stops"):
        objective.check(tiny.decoder())


def test_other_templates_are_other_data(tokenizer: Tokenizer) -> None:
    objective = build_objective(Instruction(), tokenizer)
    before = objective.fingerprint
    tokenizer.chat_template = TEMPLATES["plain"]
    assert objective.fingerprint != before
