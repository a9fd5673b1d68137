"""The best models for a budget, and what fits."""

from typing import Any

import pytest

from triform import config
from triform.planner import fits, memory, parameters, read_budget, recipe, search
from triform.planner.scaling import loss
from triform.train import read_recipe

TEXT = "1x RTX3090, 24h, form=decoder, corpus=300M tokens"


def test_a_budget_in_words() -> None:
    budget = read_budget(TEXT)
    assert (budget.fleet.name, budget.fleet.count, budget.seconds, budget.form, budget.corpus) == (
        "RTX-3090", 1, 86400, "decoder-only", 300_000_000,
    )  # fmt: skip
    assert read_budget("8xA100-80G, $500, form=encoder-decoder").money == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24h", "expected hardware"),
        ("A100", "a time such as 24h, or money"),
        ("A100, 24h, shape=round", "expected form="),
        ("A100, 24h, 12h", "said twice"),
        ("A100, 0h", "expected"),
        ("A100, 24 parsecs", "no card is named|expected"),
        ("A1000, 24h", "did you mean"),
        ("A100, 24h, form=rnn", "form: expected"),
        ("A100, 24h, corpus=none", "corpus: expected"),
        ("V100-16G, $-4", "money: expected"),
        ("", "expected hardware"),
    ],
)
def test_budgets_without_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_budget(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["decoder", "encoder", "encoder-decoder"])
def test_candidates_keep_to_the_budget(form: str) -> None:
    budget = read_budget(f"2xRTX3090, 12h, form={form}, corpus=300M")
    found = search(budget, count=4)
    assert len({one.parameters for one in found}) == len(found) == 4
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    for one in found:
        assert one.model.form.startswith(form)
        assert one.seconds <= 12 * 3600 * 1.02
        assert one.memory == memory.training(one.model, one.setting).total < 24 * 2**30
        assert one.epochs <= 16.1
        assert one.parameters == parameters(one.model).total
        made = config.from_dict(type(one.model), recipe(one, budget)["model"])
        assert made == one.model


def test_the_best_candidate_beats_its_neighbours() -> None:
    """Without a limit of text: a model of a third or of three times the size, on the tokens the time allows, is worse."""
    budget = read_budget("A100-80G, 24h")
    best = search(budget, count=1)[0]
    work = best.tokens * best.parameters
    for factor in (1 / 3, 3):
        size = best.parameters * factor
        band = loss(size, work / size)
        assert (band.low + band.high) / 2 > best.loss


def test_more_time_is_a_better_model() -> None:
    short, long = (search(read_budget(f"A100-80G, {hours}h"), count=1)[0] for hours in (4, 96))
    assert long.loss < short.loss
    assert long.parameters > short.parameters


@pytest.mark.parametrize("form", ["decoder", "encoder", "encoder-decoder"])
def test_the_recipe_is_one_that_train_reads(form: str) -> None:
    budget = read_budget(f"RTX3090, 1h, form={form}")
    best = search(budget, count=1)[0]
    made = read_recipe(recipe(best, budget))
    assert made.train.steps == best.steps
    assert made.architecture() == best.model
    assert made.objective.longest()


def test_what_fits_in_24_gigabytes() -> None:
    rows = {fit.name: fit for fit in fits(24 * 10**9)}
    assert rows["gpt2"].training == "adamw, recompute none"
    assert rows["gpt2"].batch > 8
    assert rows["llama-7b"].training is None
    assert rows["llama-7b"].context["int4"] > rows["llama-7b"].context["int8"] > rows["llama-7b"].context["bf16"] > 0
    assert "llama-3-70b" not in rows


def test_a_memory_for_nothing() -> None:
    with pytest.raises(ValueError, match="nothing known by name fits"):
        fits(10_000)


def test_settings_are_kept(monkeypatch: Any) -> None:
    found = search(read_budget("RTX3090, 2h"), count=1, recompute="full", optimizer="sgd", batch=2)[0]
    assert (found.setting.recompute, found.setting.optimizer, found.setting.batch) == ("full", "sgd", 2)
