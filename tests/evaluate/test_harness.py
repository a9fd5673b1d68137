"""lm-evaluation-harness with a Triform model: its own figures, and what its Hugging Face model gives with the same weights."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from generate.conftest import LINES, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of
from lm_eval.api.instance import Instance

from triform import hub
from triform.cli import run
from triform.evaluate import Judged, Settings, compare_results, log_likelihoods
from triform.evaluate import harness as module
from triform.evaluate.harness import harness, metric
from triform.evaluate.harness_model import HarnessModel, sampling_of
from triform.evaluate.perplexity import perplexity
from triform.generate import Sampling, generate
from triform.text import Tokenizer
from triform.text.framing import opening

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def judged(form: str = "decoder-only", seed: int = 0) -> Judged:
    tokenizer = tokenizer_of("wordpiece" if form == "encoder-only" else "byte-bpe")
    made = {"decoder-only": decoder_only, "encoder-decoder": encoder_decoder, "encoder-only": encoder_only}[form]
    return Judged(built(made(tokenizer.vocab_size), seed), tokenizer)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """A task of the harness over a local file."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    file = folder / f"{name}.yaml"
    plain = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    file.write_text(yaml.safe_dump(plain | settings | {"metadata": {"version": 1.0}}), "utf-8")
    return file


def choices(folder: Path, name: str = "weather") -> Path:
    rows = [{"question": line[:6], "choices": [line[6:12], LINES[number - 1][6:12]], "answer": 0} for number, line in enumerate(LINES)]
    more = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    return task(folder, name, rows, **more, target_delimiter="", metric_list=metrics)


@pytest.mark.parametrize("form", ["decoder-only", "encoder-decoder", "encoder-only"])
def test_likelihoods_are_ours(form: str) -> None:
    own = judged(form)
    pairs = [("话说天下", "大势"), ("", "滚滚长江"), ("The quick", " brown fox")]
    found = HarnessModel(own).loglikelihood(requests("loglikelihood", *pairs))
    wanted = log_likelihoods(own.model, own.tokenizer, pairs)
    assert found == [(one.log_prob, one.greedy) for one in wanted]
    assert len({log_prob for log_prob, _ in found}) == 3


@pytest.mark.parametrize("form", ["decoder-only", "encoder-decoder"])
def test_answers_are_written_up_to_their_stop_strings(form: str) -> None:
    own = judged(form)
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    found = HarnessModel(own).generate_until(requests("generate_until", *((line, settings) for line in LINES)))
    wanted = generate(own.model, own.tokenizer, LINES, Sampling(max_new_tokens=12, stop=("\n",)))
    assert found == [one.text for one in wanted]
    warm = {"temperature": 1.0, "max_gen_toks": 12}
    drawn = HarnessModel(own).generate_until(requests("generate_until", *((line, warm) for line in LINES)))
    assert drawn != found


def test_what_is_too_long_is_cut_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    own = judged()
    monkeypatch.setattr(own.tokenizer, "length", 24)
    model = HarnessModel(own)
    long = LINES[0] * 9
    found = list(model._request(0, long, {"max_gen_toks": 4}).ids)
    before = opening(own.tokenizer)
    assert found == before + own.tokenizer.encode(long)[-(20 - len(before)) :]
    assert len(model.generate_until(requests("generate_until", (long, {"max_gen_toks": 4})))) == 1
    with pytest.raises(ValueError, match="max_gen_toks: expected fewer than the 24"):
        model.generate_until(requests("generate_until", (long, {"max_gen_toks": 24})))


def test_rolling_likelihood_is_that_of_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = judged()
    monkeypatch.setattr(own.tokenizer, "length", 16)
    (found,) = HarnessModel(own).loglikelihood_rolling(requests("loglikelihood_rolling", ("".join(LINES),)))
    (tmp_path / "a.txt").write_text("".join(LINES), "utf-8")
    result = perplexity(own, tmp_path / "a.txt", Settings(window=16, stride=16))
    assert found == pytest.approx(-result.metrics[0].rows[:, 0].sum(), abs=1e-6)
    assert found != pytest.approx(-perplexity(own, tmp_path / "a.txt", Settings(window=16, stride=4)).metrics[0].rows[:, 0].sum(), abs=1e-3)


def test_a_conversation_is_written_by_the_chat_template(monkeypatch: pytest.MonkeyPatch) -> None:
    own = judged()
    monkeypatch.setattr(own.tokenizer, "chat_templates", {"default": TEMPLATE})
    model = HarnessModel(own, chat=True)
    turns = [{"role": "user", "content": "Hello"}]
    assert model.apply_chat_template(turns) == "<user>Hello\n<assistant>"
    begun = [*turns, {"role": "assistant", "content": " So "}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == "<user>Hello\n<assistant> So"
    assert model.chat_template() == TEMPLATE


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"max_new_tokens": 256}),
        ({"until": "\n", "max_new_tokens": 3}, {"max_new_tokens": 3, "stop": ("\n",)}),
        ({"do_sample": True}, {"max_new_tokens": 256, "temperature": 1}),
        ({"temperature": 0.5, "top_p": 0.9}, {"max_new_tokens": 256, "temperature": 0.5, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.5, "top_k": 3}, {"max_new_tokens": 256}),
        ({"num_beams": 1, "use_cache": True, "until": None}, {"max_new_tokens": 256}),
    ],
)
def test_settings_of_answers_are_ours(settings: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sampling_of(settings, 7) == Sampling(seed=7, **wanted)


def test_an_unknown_setting_is_told() -> None:
    with pytest.raises(ValueError, match="num_beams=4"):
        sampling_of({"num_beams": 4}, 0)


def test_tasks_are_measured_with_our_intervals(tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    (result,) = harness(judged(), [str(choices(tmp_path))], Settings(on_progress=lambda *done: shown.append(done)))
    assert (result.kind, result.name, [one.name for one in result.metrics]) == ("harness", "weather", ["acc", "acc_norm"])
    own = judged()
    for item, right in zip(result.items, result.metrics[0].rows[:, 0], strict=True):
        first, second = log_likelihoods(own.model, own.tokenizer, [tuple(one) for one in item["asked"]])
        assert (first.log_prob > second.log_prob) == right
    found = result.to_dict()["metrics"]["acc"]
    assert found["method"] == "Wilson"
    assert 0 < found["value"] < 1
    assert shown
    assert result.setting == {"shots": 0, "version": 1.0, "chat": False, "window": 2048}
    (other,) = harness(judged(seed=3), [str(choices(tmp_path))], Settings())
    assert compare_results(result, other).differences["acc"].test == "McNemar"
    (fewer,) = harness(judged(), [str(choices(tmp_path))], Settings(limit=3))
    assert len(fewer.items) == 3


def test_written_answers_and_perplexity_are_measured(tmp_path: Path) -> None:
    rows = [{"question": line[:6], "answer": line[6:]} for line in LINES]
    more = {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    kwargs = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}, {"metric": "bleu"}]
    written = task(tmp_path, "written", rows, **more, generation_kwargs=kwargs, metric_list=metrics)
    rolling = task(
        tmp_path, "rolling", rows, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}{{answer}}",
        metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )  # fmt: skip
    first, second = harness(judged(), [str(written), str(rolling)], Settings())
    assert [(one.name, one.share) for one in first.metrics] == [("exact_match", True), ("bleu", False)]
    assert first.to_dict()["metrics"]["bleu"]["method"] == "standard error"
    values = second.to_dict()["metrics"]
    assert {one["method"] for one in values.values()} == {"bootstrap"}
    assert values["bits_per_byte"]["value"] == pytest.approx(math.log2(values["byte_perplexity"]["value"]))
    assert values["bits_per_byte"]["low"] < values["bits_per_byte"]["value"] < values["bits_per_byte"]["high"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness without the thousands of tasks that it reads first."""
    every = module._manager
    monkeypatch.setattr(module, "_manager", lambda known, folders: every(False, folders))


@pytest.mark.usefixtures("few_tasks")
def test_a_group_is_one_result_with_parts(tmp_path: Path) -> None:
    ours, theirs = choices(tmp_path, "ours"), choices(tmp_path, "theirs")
    group = tmp_path / "group.yaml"
    group.write_text(yaml.safe_dump({"group": "both", "task": [ours.stem, theirs.stem]}), "utf-8")
    (result,) = harness(judged(), [str(group)], Settings())
    assert (result.name, sorted(result.parts())) == ("both", ["ours", "theirs"])
    assert len(result.metrics[0].rows) == 2 * len(LINES)


@pytest.mark.parametrize(
    ("values", "told", "share", "method"),
    [
        ([1, 0, 1, 1], (0.75, 0.2), True, "Wilson"),
        ([0.5, 0.25], (0.375, 0.1), False, "bootstrap"),
        ([-1.0, -3.0], (math.exp(2), 0.1), False, "bootstrap"),
        ([(-4.0, 2), (-2.0, 1)], (math.exp(2), 0.1), False, "bootstrap"),
        ([(-4.0, 2), (-2.0, 1)], (2 / math.log(2), 0.1), False, "bootstrap"),
        ([("a", "b"), ("b", "b")], (0.3, 0.1), False, "standard error"),
        ([(1, 0), (1, 1)], (0.3, "N/A"), False, "standard error"),
    ],
)
def test_a_figure_is_taken_apart_where_it_can_be(values: list[Any], told: tuple[float, Any], share: bool, method: str) -> None:
    found = metric("x", values, told)
    estimate = found.estimate()
    assert found.value == pytest.approx(told[0], rel=1e-12)
    assert (found.share, estimate.method) == (share, method)
    assert (estimate.low is None) == (told[1] == "N/A")


def test_figures_with_standard_errors_are_compared() -> None:
    from triform.evaluate.statistics import compare

    first, second = (metric("bleu", ["a", "b"], told) for told in ((10.0, 3.0), (20.0, 4.0)))
    found = compare(first, second)
    assert (found.value, found.test) == (10.0, "standard errors")
    assert found.p == pytest.approx(2 * (1 - 0.97724987), abs=1e-6)
    assert compare(metric("bleu", ["a", "b"], (1.0, "N/A")), second).p is None


def test_the_command_measures_by_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = judged()
    hub.save(own.model, own.tokenizer, tmp_path / "model")
    assert run(["eval", str(tmp_path / "model"), "--harness", str(choices(tmp_path)), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["models"][0]["results"]
    assert (result["task"], result["kind"], result["items"]) == ("weather", "harness", len(LINES))
    kept = [json.loads(line) for line in (tmp_path / "model/evaluations.jsonl").read_text("utf-8").splitlines()]
    assert kept[0]["metrics"] == result["metrics"]


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.parametrize(
    ("name", "says"),
    [("no-such-task", "expected a task, group or tag"), ("nowhere.yaml", "expected a file of a task"), ("empty", "cannot load it")],
)
def test_mistakes_get_one_line(name: str, says: str, tmp_path: Path) -> None:
    if name == "empty":
        file = task(tmp_path, "empty", [])
        name = str(file)
    with pytest.raises(ValueError, match=says) as error:
        harness(judged(), [name], Settings())
    assert "\n" not in str(error.value)


def test_tasks_that_run_programs_run_only_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    file = choices(tmp_path)
    file.write_text(file.read_text("utf-8") + "unsafe_code: true\n", "utf-8")
    with pytest.raises(ValueError, match="allow it by --allow-code"):
        harness(judged(), [str(file)], Settings())
    assert harness(judged(), [str(file)], Settings(allow_code=True))[0].name == "weather"


def transformers_pair(form: str, folder: Path) -> tuple[Any, Judged]:
    """A small model as the harness' own over transformers, and as Triform reads its folder."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = Tokenizer(copy.deepcopy(tokenizer_of("byte-bpe").backend))
    size: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    torch.manual_seed(0)
    if form == "encoder-decoder":
        tokenizer.backend.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", tokenizer.eos)])
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": tokenizer.pad}
        model = T5ForConditionalGeneration(T5Config(**size, **sizes)).eval()
    else:
        tokenizer.backend.post_processor = None
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**size, **sizes, bos_token_id=tokenizer.bos, max_position_embeddings=64)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    theirs = HFLM(model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4, max_length=64)
    loaded, own = hub.load(folder)
    assert own is not None
    own.length = 64
    return theirs, Judged(loaded, own)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["decoder-only", "encoder-decoder"])
def test_answers_are_those_of_the_harness_own_model(form: str, tmp_path: Path) -> None:
    theirs, own = transformers_pair(form, tmp_path)
    ours = HarnessModel(own)
    pairs = [(line[:5], line[5:9]) for line in LINES] + [("The quick ", "brown fox"), ("滚滚", "长江"), ("The quick", " brown")]
    if form == "decoder-only":  # an empty context is a token of padding to the other's encoder
        pairs.append(("", "滚滚长江"))
    found, wanted = (model.loglikelihood(requests("loglikelihood", *pairs)) for model in (ours, theirs))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    np.testing.assert_allclose(*([log_prob for log_prob, _ in one] for one in (found, wanted)), atol=1e-4)
    assert len({round(log_prob, 2) for log_prob, _ in found}) > len(pairs) // 2, "texts that are alike would not tell a mistake"
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", *((line[:6], settings) for line in LINES))
    texts = [[text.replace("\ufffd", "") for text in model.generate_until(asked)] for model in (ours, theirs)]
    assert all(text.startswith(own) for own, text in zip(*texts, strict=True)), "the other's encoder-decoder counts the prompt's tokens too"
    assert len(set(texts[0])) > 1
    if form == "decoder-only":
        assert texts[0] == texts[1]
        long = requests("loglikelihood_rolling", ("".join(LINES) * 2,))
        assert ours.loglikelihood_rolling(long) == pytest.approx(theirs.loglikelihood_rolling(long), abs=1e-3)


@pytest.mark.slow
def test_a_real_model_is_measured_as_by_the_harness_own(tmp_path: Path) -> None:
    """smollm2-135m-instruct: every likelihood, and so every figure, is that of the harness' Hugging Face model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from minimal_pairs import write
    from real_models import transformers_model
    from transformers import AutoTokenizer

    place = hub.locate("smollm2-135m-instruct")
    model, tokenizer = hub.load(place)
    assert tokenizer is not None
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs")
    rows = [json.loads(line) for file in sorted((tmp_path / "pairs").iterdir()) for line in file.read_text("utf-8").splitlines()[:12]]
    more = {"output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}"}
    blimp = task(tmp_path, "pairs_of_blimp", rows, **more, metric_list=[{"metric": "acc"}])
    rolling = task(
        tmp_path, "rolling", [{"text": " ".join(row["sentence_good"] for row in rows[:40])}], output_type="loglikelihood_rolling",
        doc_to_text="", doc_to_target="{{text}}", metric_list=[{"metric": "bits_per_byte"}],
    )  # fmt: skip
    written = task(
        tmp_path, "sums", [{"question": f"Question: What is {i} + {i + 1}?\nAnswer:", "answer": str(2 * i + 1)} for i in range(6)],
        output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12, "do_sample": False}, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    tokenizer.save(tmp_path / "tokenizer")
    files = [blimp, rolling, written]
    weights = place if place.is_file() else next(place.rglob("*.gguf"))
    theirs = HFLM(transformers_model(weights), tokenizer=AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), batch_size=8)
    wanted = simple_evaluate(theirs, tasks=list(map(str, files)), bootstrap_iters=0, log_samples=True)
    found = {one.name: one for one in harness(Judged(model, tokenizer), list(map(str, files)), Settings())}
    for name in ("pairs_of_blimp", "sums"):
        (metric,) = found[name].metrics
        assert metric.value == wanted["results"][name][f"{metric.name},none"]
        for item, sample in zip(found[name].items, wanted["samples"][name], strict=True):
            if name == "sums":
                assert item["answered"] == sample["filtered_resps"]
            else:
                ours, other = (np.array([float(pair[0]) for pair in one]) for one in (item["answered"], sample["filtered_resps"]))
                np.testing.assert_allclose(ours, other, atol=2e-3)  # nats, of sums of some tens, other kernels
    assert 0.5 < found["pairs_of_blimp"].metrics[0].value < 1
    assert found["rolling"].metrics[0].value == pytest.approx(wanted["results"]["rolling"]["bits_per_byte,none"], abs=1e-5)
