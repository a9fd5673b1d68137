"""What we write, the reference opens by itself: same class, nothing missing, the same answers (1e-5 of the largest)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import CASES, inputs, reference
from parity.compare import TOLERANCE, answers_differ, call_ours, call_theirs
from safetensors.torch import save_file

from triform import config, hub, nn

pytestmark = pytest.mark.filterwarnings("ignore")
AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "EncoderModel": "AutoModelForTextEncoding",
    "TextModelWithProjection": "CLIPTextModelWithProjection",  # AutoModel opens these bare
    "VisionModelWithProjection": "CLIPVisionModelWithProjection",
    "Model": "AutoModel",
}


def written(model: Any, folder: Path) -> Path:
    """A public folder of a model of ours."""
    data, family = hub.write_config(model.config)
    (folder / "config.json").write_text(json.dumps(data))
    save_file(hub.export_weights(model, family), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def opened(folder: Path) -> Any:
    """The reference's model of a folder, opened by the automatic class for its head; nothing may be missing or left over."""
    import transformers

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = next(auto for end, auto in AUTO.items() if architecture.endswith(end))
    model, found = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def answers_apart(ours: Any, theirs: Any, form: str) -> float:
    ids, target = inputs(), inputs(10, seed=9) if form == "both" else None
    with torch.no_grad():
        return answers_differ(call_ours(ours, form, ids, target)[0], call_theirs(theirs, form, ids, target)[0])


@pytest.mark.parametrize("name", CASES)
def test_the_reference_opens_what_we_write(name: str, tmp_path: Path) -> None:
    model = hub.load_public(reference(name)[1])
    assert answers_apart(model, opened(written(model, tmp_path)), CASES[name].form) < TOLERANCE
    assert hub.read_config(json.loads((tmp_path / "config.json").read_text()))[0] == model.config


@pytest.mark.parametrize(
    ("preset", "architecture"),
    [
        ("storyteller", "LlamaForCausalLM"),
        ("critic", "RobertaPreLayerNormForMaskedLM"),
        ("translator", "PegasusForConditionalGeneration"),
        ("transformer-base", None),
    ],
)
def test_the_demo_s_models_have_a_public_counterpart(preset: str, architecture: str | None, tmp_path: Path) -> None:
    spec = config.preset(preset)
    if architecture is None:
        with pytest.raises(hub.NoCounterpart, match=r"the nearest, marian, has other encoder.input.position.interleaved"):
            hub.write_config(spec)
        return
    model = nn.build(spec, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = opened(written(model, tmp_path))
    assert type(theirs).__name__ == architecture
    form = {"encoder-only": "encoder", "decoder-only": "decoder"}.get(spec.form, "both")
    assert answers_apart(model, theirs, form) < TOLERANCE
