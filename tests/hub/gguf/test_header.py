"""Files that lie about themselves: refused with one line, before memory is taken for what they claim."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf_tools import entry, file, pair, text
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.hub.gguf import Header

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.gguf"))
NAME, NUMBER, TEXT, ARRAY = pair("general.name", 8, text("x")), pair("a", 4, struct.pack("<I", 7)), 8, 9
ONE, FLOATS = entry("t", (2, 3)), struct.pack("<6f", *range(6))
HUGE = 2**60


def refused(tmp_path: Path, data: bytes) -> str:
    """What is said of a file, which must be one line that begins with its name, without much memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\A") as error:
            Header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data) + 2**20
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 500 + len(str(path))
    return said.removeprefix(f"{path}: ")


def test_what_a_file_says_of_itself_is_read(tmp_path):
    pairs = [
        NAME, NUMBER, pair("eps", 6, struct.pack("<f", 1e-6)), pair("flag", 7, b"\1"),
        pair("list", ARRAY, struct.pack("<IQ", 5, 2) + struct.pack("<2i", -1, 4)),
        pair("texts", ARRAY, struct.pack("<IQ", TEXT, 2) + text("a") + text("中")),
    ]  # fmt: skip
    for version in (2, 3):
        path = tmp_path / f"{version}.gguf"
        path.write_bytes(file(pairs, [ONE], FLOATS, version=version))
        header = Header(path)
        assert {k: list(v) if k == "list" else v for k, v in header.metadata.items()} == {
            "general.name": "x", "a": 7, "eps": 1e-6, "flag": True, "list": [-1, 4], "texts": ["a", "中"],
        }  # fmt: skip
        stored = header.tensors["t"]
        assert (stored.shape, stored.kind, stored.size) == ((3, 2), "F32", 24)
        assert path.read_bytes()[stored.offset :] == FLOATS


def test_the_alignment_is_the_files_own(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(file([pair("general.alignment", 4, struct.pack("<I", 256))], [ONE], FLOATS, align=256))
    assert Header(path).tensors["t"].offset == 256


FAULTS = {
    "other magic": (b"GGML" + file([], [])[4:], "does not begin with the word GGUF"),
    "version 1": (file([NAME], [ONE], FLOATS, version=1), "version 1; expected version 2 or 3"),
    "version 4": (file([NAME], [ONE], FLOATS, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
    "nothing": (b"", "only 0 bytes"),
    "a word": (b"GGUF", "only 4 bytes"),
    "tensors without end": (file([NAME], [ONE], FLOATS, counts=(HUGE, 1)), "tensors, and there is room for"),
    "pairs without end": (file([NAME], [ONE], FLOATS, counts=(1, HUGE)), "pairs of metadata, and there is room for"),
    "one pair too many": (file([NAME] * 1, [], bytes(64), counts=(0, 2)), "empty key"),
    "one tensor too many": (file([NAME], [ONE], bytes(2000), counts=(2, 1)), "dimensions; expected 1 to 4"),
    "a key without end": (file([struct.pack("<Q", HUGE) + b"a" + bytes(64)], []), "at most 65,536"),
    "a text without end": (file([pair("k", TEXT, struct.pack("<Q", HUGE))], [], bytes(64)), f"expected {HUGE:,} bytes"),
    "a text not UTF-8": (file([pair("k", TEXT, text(b"\xff\xfe"))], []), "not UTF-8"),
    "a key not UTF-8": (file([pair(b"\xed\xa0\x80", 4, bytes(4))], [], bytes(64)), "not UTF-8"),
    "an unknown type": (file([pair("k", 13, bytes(64))], []), "has type 13"),
    "an array of arrays": (file([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(64))], []), "array of arrays"),
    "an array of an unknown type": (file([pair("k", ARRAY, struct.pack("<IQ", 99, 1) + bytes(64))], []), "array of type 99"),
    "numbers without end": (file([pair("k", ARRAY, struct.pack("<IQ", 4, HUGE) + bytes(64))], []), "items in k"),
    "texts without end": (file([pair("k", ARRAY, struct.pack("<IQ", TEXT, HUGE) + bytes(64))], []), "items in k"),
    "a key twice": (file([NUMBER, NUMBER], []), "a twice"),
    "an empty key": (file([pair("", 4, bytes(4))], [], bytes(64)), "empty key"),
    "a tensor twice": (file([NAME], [ONE, entry("t", (2, 3), offset=32)], bytes(64)), "tensor t twice"),
    "no dimensions": (file([NAME], [entry("t", ())], bytes(64)), "0 dimensions"),
    "many dimensions": (file([NAME], [entry("t", (1,) * 9)], bytes(64)), "9 dimensions"),
    "a dimension of zero": (file([NAME], [entry("t", (0, 3))], bytes(64)), "none of zero"),
    "a product beyond 64 bits": (file([NAME], [entry("t", (2**62, 2**62))], bytes(64)), "should end at byte"),
    "an offset beyond the end": (file([NAME], [entry("t", (2, 3), offset=2**62)], FLOATS), "should end at byte"),
    "an odd offset": (file([NAME], [entry("t", (2, 3), offset=4)], bytes(64)), "no multiple of the alignment 32"),
    "tensors on another": (file([NAME], [entry("t", (64,)), entry("u", (2,), offset=32)], bytes(512)), "t and u overlap"),
    "cut short": (file([NAME], [ONE], FLOATS[:-1]), "cut short"),
    "a row of half a block": (file([NAME], [entry("t", (48, 2), 8)], bytes(512)), "rows of 48; Q8_0 needs full blocks of 32"),
    "a type not read": (file([NAME], [entry("t", (256,), 16)], bytes(512)), "t is IQ2_XXS, which is not read"),
    "a type that is none": (file([NAME], [entry("t", (256,), 999)], bytes(512)), "t is type 999"),
    "an odd alignment": (file([pair("general.alignment", 4, struct.pack("<I", 24))], [ONE], FLOATS), "power of two"),
    "an alignment of zero": (file([pair("general.alignment", 4, struct.pack("<I", 0))], [ONE], FLOATS), "power of two"),
    "an alignment in words": (file([pair("general.alignment", TEXT, text("32\n\n32"))], [ONE], FLOATS), "power of two"),
    "a name of many lines": (file([NAME], [entry("t\n\x1b[2J", (3,), 999)], bytes(64)), "is type 999"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, fault):
    data, said = FAULTS[fault]
    assert said in refused(tmp_path, data)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a file"):
        Header(tmp_path)
    with pytest.raises(ValueError, match="expected a file, found none"):
        Header(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ValueError, match="expected a file"):
        Header(tmp_path / "pipe.gguf")


TEXTS = pair("k", ARRAY, struct.pack("<IQ", TEXT, 2) + text("a") + text("b"))
WHOLE = file([NAME, NUMBER, TEXTS], [ONE, entry("u", (32,), 8, 32)], bytes(96))


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_bytes_changed_anywhere_give_a_header_or_one_line(tmp_path_factory, at, changed):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(WHOLE[:at] + changed + WHOLE[at + len(changed) :])
    said = ""
    try:
        header = Header(path)
    except ValueError as error:
        said = str(error)
    else:
        assert all(stored.offset + stored.size <= path.stat().st_size for stored in header.tensors.values())
    assert not said or (said.startswith(f"{path}: ") and "\n" not in said)


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(WHOLE[: min(length, len(WHOLE) - 31)])  # what follows the last tensor's bytes may be missing
    with pytest.raises(ValueError, match=r"m\.gguf: "):
        Header(path)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_findings_of_fuzzing_stay_refused(path):
    from triform.hub.gguf import GGUFFile

    with pytest.raises(ValueError, match=r"\.gguf: ") as error:
        GGUFFile(path).spec  # noqa: B018
    assert "\n" not in str(error.value)
