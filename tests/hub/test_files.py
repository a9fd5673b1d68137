"""Files from outside: read as they are, or refused in one line that names them, before memory is taken and with nothing run."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.hostile import BERT, BIN, HOSTILE, PICKLES, TENSORS, header
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from triform import hub, nn
from triform.hub.fields import read_json
from triform.hub.files import INDEX, SINGLE, WeightFiles

CORPUS = Path(__file__).parent / "corpus"


def assert_refused(file: Path, says: str | None = None, *, read: Callable[[Path], Any] = WeightFiles) -> None:
    """It is, in one line that names the file, or another of the folder that an index names."""
    with pytest.raises(ValueError, match=says) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(str(file.parent if file.name.endswith("index.json") else file))
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, name: str) -> None:
    content, says = HOSTILE[name]
    (tmp_path / SINGLE).write_bytes(content)
    assert_refused(tmp_path / SINGLE, says)


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one.safetensors", metadata={"format": "pt"})
    torch.save(TENSORS, tmp_path / "new.bin")
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for file in tmp_path.iterdir():
        found = WeightFiles(file)
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert (found.shape(name), found.dtype(name)) == (tensor.shape, tensor.dtype)
            assert torch.equal(found[name], tensor)
            wide = torch.full(tensor.shape, -1.0, dtype=torch.float64)
            found.read_into(name, wide)
            assert torch.equal(wide, tensor.double())


@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (7, 1, 2)])
def test_pieces_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr("triform.hub.stored.PIECE", 16)  # bytes
    tensor = torch.randn(shape)
    save_file({"a": tensor, "b": tensor + 1, "c": tensor.clone()}, tmp_path / SINGLE)
    found = WeightFiles(tmp_path)
    half = torch.empty(shape, dtype=torch.bfloat16)
    found.read_into("a", half)
    assert torch.equal(half, tensor.bfloat16())
    assert found.equal("a", "c")
    assert found.equal("a", "b") == (tensor.numel() == 0)


def test_views_and_shared_tensors_of_a_pickle(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    tensors = {"table": table, "again": table, "rows": table[2:4], "turned": table.T, "one": table[1, 2], "spread": table[::2, 1:]}
    torch.save(tensors, tmp_path / BIN)
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for file in (tmp_path, tmp_path / "old.bin"):
        found = WeightFiles(file)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        into = torch.empty(4, 6)
        found.read_into("turned", into)
        assert torch.equal(into, table.T)


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1000)}, tmp_path / SINGLE)
    found = WeightFiles(tmp_path)
    os.truncate(tmp_path / SINGLE, 2000)
    with pytest.raises(ValueError, match="ended while it was read"):
        found["a"]


# Folders


def halves(folder: Path, ending: str = "safetensors") -> Path:
    """Two shards and their index."""
    names = [f"model-0000{i}-of-00002.safetensors" if ending == "safetensors" else f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for i, name in enumerate(names):
        part = dict(list(TENSORS.items())[i::2])
        save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
    places = {name: names[i % 2] for i, name in enumerate(TENSORS)}
    index = INDEX if ending == "safetensors" else f"{BIN}.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_as_one(tmp_path: Path, ending: str) -> None:
    halves(tmp_path, ending)
    found = WeightFiles(tmp_path)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / BIN)
    assert set(WeightFiles(tmp_path)) == {"a"}
    save_file({"b": torch.zeros(1)}, tmp_path / SINGLE)
    assert set(WeightFiles(tmp_path)) == {"b"}


def _map(**places: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda index: index | {"weight_map": index["weight_map"] | places}


SECOND = "model-00002-of-00002.safetensors"
INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a folder above": (_map(a="../../x"), r"index.json: expected files beside it, got ../../x$"),
    "an absolute path": (_map(a="/etc/passwd"), "index.json: expected files beside it, got /etc/passwd$"),
    "a folder inside": (_map(a="inside/x.safetensors"), "index.json: expected files beside it"),
    "backslashes": (_map(a="..\\x"), "index.json: expected files beside it"),
    "a drive": (_map(a="C:x"), "index.json: expected files beside it"),
    "itself": (_map(a="."), r"index.json: expected files beside it, got \.$"),
    "nothing": (_map(a=""), "index.json: expected files beside it"),
    "a zero byte": (_map(a="x\0"), r"index.json: expected files beside it, got 'x\\x00'$"),
    "lines": (_map(a="x\ny"), r"index.json: expected files beside it, got 'x\\ny'$"),
    "a name too long": (_map(a="x" * 300), "expected a file, found none"),
    "a missing shard": (_map(a="model-00003-of-00002.safetensors"), "model-00003-of-00002.safetensors: expected a file, found none"),
    "a number": (_map(a=3), "expected a weight_map of names to files"),
    "a list": (lambda index: {"weight_map": []}, "expected a weight_map of names to files"),
    "no map": (lambda index: {}, "expected a weight_map of names to files"),
    "a tensor that its shard lacks": (_map(g=SECOND), rf"{SECOND}: lacks g, which {INDEX} places there"),
    "another shard": (_map(a=SECOND), f"00001-of-00002.safetensors: holds a, which {INDEX} places in {SECOND}"),
    "a tensor that is not named": (
        lambda index: {"weight_map": {k: v for k, v in index["weight_map"].items() if k != "d"}}, f"holds d, which {INDEX} does not name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_a_hostile_index_is_refused(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / "x")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    index = halves(folder)
    change, says = INDEXES[name]
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    assert_refused(index, says, read=lambda file: WeightFiles(file.parent))


def _link(to: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(to)


@pytest.mark.parametrize(
    "make", [_link("/dev/zero"), _link("/dev/tty"), _link("nowhere"), _link(SINGLE), _link(".."), os.mkfifo, Path.mkdir],
    ids=["zeros", "terminal", "nowhere", "itself", "folder above", "pipe", "folder"],
)  # fmt: skip
@pytest.mark.parametrize("name", [SINGLE, "model-00001-of-00002.safetensors", BIN])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    if name.startswith("model-"):
        halves(tmp_path)
        (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"found (something else|none)") as caught:
        WeightFiles(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub."""
    save_file(TENSORS, tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / SINGLE).symlink_to("../blob")
    assert set(WeightFiles(tmp_path / "snapshot")) == set(TENSORS)


# Pickles


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_run(tmp_path: Path, name: str) -> None:
    make, says = PICKLES[name]
    make(tmp_path / BIN)
    assert_refused(tmp_path / BIN, says, read=lambda file: WeightFiles(file.parent))
    assert not (tmp_path / "ran").exists()


def test_the_pickles_that_run_would_run(tmp_path: Path) -> None:
    """The control: read without care, they do."""
    make, _ = PICKLES["runs a command"]
    make(tmp_path / BIN)
    torch.load(tmp_path / BIN, weights_only=False)
    assert (tmp_path / "ran").exists()


# Fuzzing


def mutated(content: bytes, random: random.Random) -> bytes:
    """A file with some bytes changed, cut out, doubled or swapped for numbers that hurt."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 30))
        match random.randrange(7):
            case 0:
                data[at : at + length] = random.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + 8] = random.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, 2**40)).to_bytes(8, "little")
            case 4:
                del data[at:]
            case 5:
                digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57] or [0]
                spot = random.choice(digits)
                data[spot : spot + 1] = random.choice((b"-1", b"9" * 19, b"1e9", b"0.5", b"null", b"[]"))
            case _:
                data[at:at] = random.choice((b"{", b"[", b'"', b"\\", b"}", b"]", b",", b"\xff", b"\0"))
    return bytes(data)


def assert_only_value_errors(file: Path, read: Callable[[Path], Any]) -> None:
    """Read a file; where it is refused, in one line that names it."""
    refusal = None
    try:
        read(file)
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or (str(file.parent) in refusal and refusal.isprintable()), refusal


def read_all(file: Path) -> None:
    found = WeightFiles(file)
    for name in found:
        assert found[name].shape == found.shape(name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Valid files, by the name to read them under."""
    folder = tmp_path_factory.mktemp("sound")
    save_file(TENSORS, folder / SINGLE)
    torch.save(TENSORS, folder / BIN)
    torch.save(TENSORS, folder / "old.bin", _use_new_zipfile_serialization=False)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", [SINGLE, BIN, "old.bin"])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spoilt_files_raise_nothing_but_value_errors(
    sound: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str, seed: int
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(mutated(sound[name], random.Random(seed)))
    assert_only_value_errors(file, read_all)


NASTY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**31, 2**40, 2**63, 10**30, -1, 0]), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*TENSORS, "__metadata__", "x"]), NASTY | st.fixed_dictionaries(
    {"dtype": NASTY | st.sampled_from(["F32", "BF16", "I64"]), "shape": NASTY | st.lists(st.integers(0, 9) | NASTY, max_size=3),
     "data_offsets": NASTY | st.lists(st.integers(0, 99), min_size=2, max_size=2)})), st.binary(max_size=99))  # fmt: skip
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], tail: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(header(json.dumps(data), tail))
    assert_only_value_errors(file, read_all)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    spec, family = hub.read_config(BERT)
    save_file(hub.export_weights(nn.build(spec, seed=0), family), folder / SINGLE)
    return folder


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*BERT, "id2label", "tie_word_embeddings", "layer_norm_eps", "triform"]), NASTY, min_size=1))
def test_any_configuration_is_read_or_refused(bert: Path, changes: dict[str, Any]) -> None:
    file = bert / "config.json"
    file.write_text(json.dumps(BERT | changes))
    assert_only_value_errors(file, lambda file: hub.load(file.parent))


def test_the_configuration_that_is_not_changed_loads(bert: Path) -> None:
    (bert / "config.json").write_text(json.dumps(BERT))
    assert hub.load(bert)[0].config.encoder.depth == 1


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_what_fuzzing_found(file: Path, tmp_path: Path, bert: Path) -> None:
    """Each file that once did something else than raise a ValueError of one line that names it, or took long over it."""
    if file.suffix == ".json":
        (tmp_path / "config.json").write_bytes(file.read_bytes())
        (tmp_path / SINGLE).write_bytes((bert / SINGLE).read_bytes())
        assert_only_value_errors(tmp_path / "config.json", lambda file: hub.load(file.parent))
    else:
        assert_refused(file, read=read_all)


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"3", b"{", b"\xff", b"[" * 100_000, b'{"a":' + b"1" * 5000 + b"}"):
        (tmp_path / "config.json").write_bytes(content)
        assert_refused(tmp_path / "config.json", read=read_json)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert_refused(tmp_path / "config.json", read=read_json)
