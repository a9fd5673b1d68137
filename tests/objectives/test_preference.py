"""Preferences as batches, and what they cost, against each answer by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from collating import batch, samples
from hypothesis import given
from hypothesis import strategies as st
from recipes import LINES

from triform import config
from triform.generate.reward import rewards
from triform.nn import IGNORE
from triform.objectives import KTO, Batch, Preference, RewardModel, Samples, build_objective, log_probs
from triform.objectives.answers import answer_batch, fitted
from triform.objectives.preference import AnswerRows
from triform.objectives.preference_losses import DPO, IPO, ORPO, Answers, SimPO
from triform.text import Tokenizer, train_tokenizer
from triform.text.framing import opening, source
from triform.train.reference import with_columns

ROWS = [{"prompt": LINES[i], "chosen": LINES[i + 1], "rejected": LINES[-i]} for i in range(1, 7)]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = {"decoder-only": None, "encoder-decoder": 80}


def model_of(tokenizer: Tokenizer, form: str, head: config.Head | None = None, **change: Any) -> Any:
    make = {"decoder-only": tiny.decoder, "encoder-decoder": tiny.encoder_decoder, "encoder-only": tiny.encoder}[form]
    sides = [side for side in ("encoder", "decoder") if side[:2] in form[:2] or side in form]
    fields = {f"{side}.input.vocab_size": tokenizer.vocab_size for side in sides}
    return config.with_overrides(config.Model, make("rotary", head=head), fields | change)


def built(tokenizer: Tokenizer, form: str, seed: int = 0, **more: Any) -> Any:
    made = tiny.build(model_of(tokenizer, form, **more))
    if seed:
        made = tiny.nn.build(model_of(tokenizer, form, **more), seed=seed).eval()
    return made


def alone(model: Any, tokenizer: Tokenizer, row: dict[str, str], side: str, form: str) -> tuple[float, int]:
    """The log-probability of an answer and its tokens, from a pass of its own over all logits."""
    assert tokenizer.eos is not None
    asked, answer = tokenizer.encode(row["prompt"]), [*tokenizer.encode(row[side]), tokenizer.eos]
    prompt = source(tokenizer, asked) if form == "encoder-decoder" else [*opening(tokenizer), *asked]
    if form == "decoder-only":
        logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    else:
        logits = model(torch.tensor([prompt]), target=torch.tensor([[tokenizer.bos, *answer[:-1]]])).logits[0]
    found = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return float(found.sum()), len(answer)


def referred(objective: Any, found: Samples, model: Any) -> AnswerRows:
    """All samples in one batch, with what a reference says of them."""
    columns = {name: values.detach().numpy() for name, values in objective.reference(model, batch(objective, found)).items()}
    made = batch(objective, with_columns(found, columns))
    assert isinstance(made, AnswerRows)
    return made


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", [DPO(beta=0.5), IPO(), SimPO(), ORPO()], ids=lambda loss: type(loss).__name__)
def test_the_loss_is_that_of_each_answer_by_itself(form: str, loss: Any, every_character: Tokenizer, tmp_path: Path) -> None:
    """Tolerance 1e-4 of the sum; with the answers swapped it differs."""
    spec = Preference(loss=loss, sft=0.3, length=160, target_length=FORMS[form])
    objective, found = samples(spec, every_character, ROWS, tmp_path)
    model, base = built(every_character, form), built(every_character, form, seed=3)
    objective.check(model.config)
    assert objective.compares == (type(loss) in (DPO, IPO))
    made = referred(objective, found, base) if objective.compares else batch(objective, found)
    got = objective.loss(model, made)

    def total(chosen: str, rejected: str) -> float:
        found = []
        for row in ROWS:
            sides = []
            for side in (chosen, rejected):
                log_prob, tokens = alone(model, every_character, row, side, form)
                sides += [[log_prob, alone(base, every_character, row, side, form)[0], tokens]]
            found.append(sides)
        columns = torch.tensor(found).double()
        answers = [Answers(columns[:, side, 0], columns[:, side, 2], columns[:, side, 1]) for side in (0, 1)]
        return float((loss.costs(*answers) - 0.3 * answers[0].mean).sum())

    wanted = total("chosen", "rejected")
    assert abs(float(got.total) - wanted) <= 1e-4 * abs(wanted)
    assert abs(float(got.total) - total("rejected", "chosen")) > 1e-3 * abs(wanted)
    assert made.count == len(ROWS)
    assert 0 <= got.metrics["accuracy"] <= len(ROWS)
    assert got.metrics["margin"] == pytest.approx(got.metrics["chosen_reward"] - got.metrics["rejected_reward"], rel=1e-3, abs=1e-4)


@torch.no_grad()
def test_a_model_that_is_its_reference(every_character: Tokenizer, tmp_path: Path) -> None:
    """DPO costs log 2 a pair then, to 1e-5; another reference costs something else."""
    objective, found = samples(Preference(length=160), every_character, ROWS, tmp_path)
    model, other = built(every_character, "decoder-only"), built(every_character, "decoder-only", seed=3)
    same = objective.loss(model, referred(objective, found, model))
    assert float(same.total) / len(ROWS) == pytest.approx(float(np.log(2)), abs=1e-5)
    assert abs(same.metrics["log_ratio"]) < 1e-3
    assert abs(float(objective.loss(model, referred(objective, found, other)).total) / len(ROWS) - np.log(2)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_kto_is_that_of_each_answer_by_itself(form: str, every_character: Tokenizer, tmp_path: Path) -> None:
    """Of pairs and of single answers; tolerance 1e-4. With another divergence it differs."""
    rows: list[dict[str, Any]] = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2} for i, row in enumerate(ROWS)]
    spec = KTO(beta=0.02, undesirable=0.8, length=160, target_length=FORMS[form])
    objective, found = samples(spec, every_character, rows, tmp_path)
    model, base = built(every_character, form), built(every_character, form, seed=3)
    objective.check(model.config)
    made = referred(objective, found, base)
    half = len(rows) // 2
    ratios, gaps = [], []
    for i, row in enumerate(rows):
        own, other = ({"prompt": row["prompt"], "x": rows[j]["completion"]} for j in (i, (i + half) % len(rows)))
        ratios.append(alone(model, every_character, own, "x", form)[0] - alone(base, every_character, own, "x", form)[0])
        gaps.append(alone(model, every_character, other, "x", form)[0] - alone(base, every_character, other, "x", form)[0])
    got = objective.loss(model, made)
    divergence = max(0.0, float(np.mean(gaps)))
    for z in (divergence, divergence + 9):
        wanted = [1 / (1 + np.exp(0.02 * (r - z))) if i % 2 else 0.8 / (1 + np.exp(0.02 * (z - r))) for i, r in enumerate(ratios)]
        assert bool(abs(float(got.total) - sum(wanted)) <= 1e-4 * len(rows)) == (z == divergence)
    assert got.counts == {"chosen_reward": half, "rejected_reward": half}


def test_pairs_count_for_kto_as_one_good_and_one_bad_answer(every_character: Tokenizer, tmp_path: Path) -> None:
    _, found = samples(KTO(length=160), every_character, ROWS, tmp_path)
    assert [int(found[i]["label"][0]) for i in range(len(found))] == [1, 0] * len(ROWS)
    texts = [every_character.decode(found[i]["answer"]) for i in range(2)]
    assert texts == [ROWS[0]["chosen"], ROWS[0]["rejected"]]
    assert all(not np.array_equal(found[i]["other"], found[i ^ 1]["answer"]) for i in range(len(found)))


HEADS = {"encoder-only": "first", "decoder-only": "last", "encoder-decoder": "last"}


@torch.no_grad()
@pytest.mark.parametrize("form", HEADS)
def test_rewards_are_those_of_each_answer_by_itself(form: str, every_character: Tokenizer, tmp_path: Path) -> None:
    """The loss in training, tolerance 1e-4, and the rewards that a trained model gives, 1e-5; other answers have others."""
    objective, found = samples(RewardModel(length=160, center=0.1), every_character, ROWS, tmp_path)
    pool: Any = HEADS[form]
    model = built(every_character, form, head=config.Classify(labels=1, pool=pool))
    objective.check(model.config)
    sides = {}
    for side in ("chosen", "rejected"):
        said = [(({"role": "user", "content": row["prompt"]},), ({"role": "assistant", "content": row[side]},)) for row in ROWS]
        sides[side] = rewards(model, every_character, said, length=160, batch_size=4).double()
        single = torch.cat([rewards(model, every_character, [one], length=160) for one in said])
        tiny.assert_close(sides[side].float(), single, 1e-5)
    margin = sides["chosen"] - sides["rejected"]
    wanted = float((0.1 * (sides["chosen"] + sides["rejected"]).square() - F.logsigmoid(margin)).sum())
    got = objective.loss(model, batch(objective, found))
    assert float(got.total) == pytest.approx(wanted, rel=1e-4)
    assert float(got.total) != pytest.approx(float(-F.logsigmoid(-margin).sum()), rel=1e-3)
    assert got.metrics["chosen_reward"] == pytest.approx(float(sides["chosen"].sum()), rel=1e-3, abs=1e-4)


def test_a_chat_template_is_what_both_answers_are_written_by(tmp_path: Path) -> None:
    """Only the answer is scored, with the token that ends it and without what follows; earlier answers are part of the prompt."""
    special = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "<|im_start|>", "<|im_end|>")
    tokenizer = train_tokenizer([*LINES, "system user assistant\n"], kind="byte-bpe", vocab_size=300, special_tokens=special)
    tokenizer.chat_template = CHATML
    earlier = [{"role": "user", "content": "天"}, {"role": "assistant", "content": "下"}, {"role": "user", "content": "大"}]
    row = {"prompt": earlier, "chosen": [{"role": "assistant", "content": "势"}], "rejected": "分"}
    objective, found = samples(Preference(length=200), tokenizer, [row], tmp_path)
    made = batch(objective, found)
    end = tokenizer.id("<|im_end|>")
    for place, answer in enumerate("势分"):
        assert made.labels[place][made.labels[place] != IGNORE].tolist() == [*tokenizer.encode(answer), end]
    asked = tokenizer.encode_chat(earlier)
    assert made.inputs[0, : len(asked)].tolist() == asked
    assert made.inputs.shape[1] == len(asked) + len(tokenizer.encode("势"))


@given(st.integers(4, 40), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_what_is_too_long_loses_the_prompts_beginning_and_the_answers_end(length: int, asked: int, first: int, second: int) -> None:
    prompt, answers = list(range(asked)), [list(range(first)), list(range(second))]
    kept, ends = fitted(prompt, answers, length)
    assert kept
    assert list(kept) == prompt[len(prompt) - len(kept) :]
    for answer, whole in zip(ends, answers, strict=True):
        assert list(answer) == whole[: len(answer)]
        assert len(answer) >= min(len(whole), length // 2)
        assert len(kept) + len(answer) <= length
    if asked + max(first, second) <= length:
        assert (list(kept), [list(answer) for answer in ends]) == (prompt, answers)


@torch.no_grad()
@pytest.mark.parametrize("encodes", [False, True])
def test_answers_without_tokens_score_nothing(encodes: bool, every_character: Tokenizer) -> None:
    prompt, answers = np.asarray(every_character.encode("天下")), [np.zeros(0, np.int64), np.asarray(every_character.encode("大势"))]
    model = built(every_character, "encoder-decoder" if encodes else "decoder-only")
    for chosen in (answers, answers[:1]):
        made = answer_batch(every_character, [prompt] * len(chosen), chosen, encodes=encodes)
        assert log_probs(model, made).count.tolist() == [len(answer) for answer in chosen]


def test_rows_that_are_no_preferences(every_character: Tokenizer) -> None:
    objective = build_objective(Preference(), every_character)
    for said, row in {
        "chosen": {"prompt": "天", "rejected": "下"},
        "are the same": {"prompt": "天", "chosen": "下", "rejected": "下"},
        "'rejected' is empty": {"prompt": "天", "chosen": "下", "rejected": " "},
        "found the fields": {"text": "天"},
    }.items():
        with pytest.raises(ValueError, match=said):
            objective.encode([row])
    with pytest.raises(ValueError, match="expected true or false in 'label'"):
        build_objective(KTO(), every_character).encode([{"prompt": "天", "completion": "下", "label": "maybe"}])


@pytest.mark.parametrize(
    ("spec", "form", "head", "said"),
    [
        (Preference(), "encoder-decoder", None, "without target_length: expected a model that is decoder-only"),
        (Preference(target_length=9), "decoder-only", None, "with target_length: expected a model that is encoder-decoder"),
        (KTO(), "decoder-only", config.Classify(labels=2, pool="last"), "expected a LanguageModel head, got Classify"),
        (RewardModel(), "decoder-only", config.Classify(labels=2, pool="last"), "expected a head of 1 label, got 2"),
        (RewardModel(), "decoder-only", None, "expected a Classify head, got LanguageModel"),
    ],
)
def test_models_that_cannot(spec: Any, form: str, head: Any, said: str, every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match=said):
        build_objective(spec, every_character).check(model_of(every_character, form, head))


@pytest.mark.parametrize("make", [Preference, KTO, RewardModel])
def test_lengths_without_room(make: Any) -> None:
    with pytest.raises(ValueError, match="length: expected at least"):
        make(length=3)


def test_a_batch_goes_to_a_device_whole(every_character: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(KTO(length=160), every_character, ROWS, tmp_path)
    made = referred(objective, found, built(every_character, "decoder-only"))
    moved: Batch = made.to("meta")
    assert isinstance(moved, AnswerRows)
    there = {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and value.is_meta}
    assert there >= {"inputs", "wanted", "reference"}


def test_a_trained_tokenizer_reads_what_is_preferred() -> None:
    texts = list(Preference().texts(ROWS[0]))
    assert texts == [ROWS[0]["prompt"], ROWS[0]["chosen"], ROWS[0]["rejected"]]
    assert list(KTO().texts(ROWS[0])) == texts
