import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.data.sources import open_source

TEXTS = ["却说曹操", "刘备，大惊", "the end"]


def texts(*arguments, **options):
    return [row["text"] for row in open_source(*arguments, **options)]


@pytest.fixture(params=["txt", "txt.gz", "jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet"])
def file(request, tmp_path):
    path = tmp_path / f"some.{request.param}"
    kind = request.param.removesuffix(".gz")
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3]}), path)
        return path
    separator = "\t" if kind == "tsv" else ","
    lines = {
        "txt": [*TEXTS[:1], "", *TEXTS[1:]],
        "jsonl": [json.dumps({"text": t, "n": 1}, ensure_ascii=False) for t in TEXTS],
    }.get(kind, [f"text{separator}n", *(f"{t}{separator}1" for t in TEXTS)])
    data = ("\r\n".join(lines) + "\r\n").encode()
    path.write_bytes(gzip.compress(data) if request.param.endswith(".gz") else data)
    return path


def test_every_kind_of_file_gives_its_rows_again_and_again(file):
    source = open_source(file)
    assert [row["text"] for row in source] == [row["text"] for row in source] == TEXTS
    assert source.fingerprint() == open_source(file).fingerprint()


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.txt").write_text("third", "utf-8")
    (tmp_path / "a.jsonl").write_text('"first"\n{"text": "second"}\n', "utf-8")
    (tmp_path / "notes.docx").write_text("no text file")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert texts(tmp_path) == ["first", "second", "third"]
    before = open_source(tmp_path).fingerprint()
    (tmp_path / "b/1.txt").write_text("other", "utf-8")
    assert open_source(tmp_path).fingerprint() != before


def test_text_by_line_paragraph_and_file(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\ufeff one\ntwo\n\n \nthree\n", "utf-8")
    assert texts(path) == [" one", "two", "three"]
    assert texts(path, by="paragraph") == [" one\ntwo", "three"]
    assert texts(path, by="file") == [" one\ntwo\n\n \nthree"]
    with pytest.raises(ValueError, match="by='word'"):
        open_source(path, by="word")


def test_a_megabyte_in_one_line_and_one_field(tmp_path):
    line = "却说曹操，" * 70_000
    (tmp_path / "a.txt").write_text(line, "utf-8")
    (tmp_path / "b.csv").write_text(f'n,text\n1,"{line}"\n', "utf-8")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": line}), "utf-8")
    assert texts(tmp_path) == [line] * 3


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff")), min_size=1, max_size=8))
def test_lines_come_back_as_they_were_written(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "some.txt"
    path.write_bytes("\n".join([*lines, "end"]).encode())
    assert texts(path) == [*(line for line in lines if line.strip()), "end"]


def test_other_encodings_on_request(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes("却说\n曹操𠀀".encode("gb18030"))
    assert texts(path, encoding="gb18030") == ["却说", "曹操𠀀"]
    with pytest.raises(ValueError, match=r"some\.txt, line 2: not utf-8"):
        texts(path)
    with pytest.raises(ValueError, match="no encoding is named"):
        open_source(path, encoding="klingon")
    with pytest.raises(ValueError, match="convert them to UTF-8"):
        open_source(path, encoding="utf-16")


def test_columns_can_be_named_or_left_alone(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n', "utf-8")
    assert list(open_source(path, text=None)) == [{"source": "a", "target": "b"}]
    assert list(open_source(path, text="source")) == [{"text": "a", "target": "b"}]
    with pytest.raises(ValueError, match="no column 'text'; it has 'source', 'target'"):
        list(open_source(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: expected a JSON object"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: the column 'text' should be text, not int"),
        ("a.csv", b"text,n\nx\n", "line 2: 1 fields"),
        ("a.csv", b'text\n"x\n', "not valid CSV"),
        ("a.csv", b"text,text\n", "same name"),
        ("a.txt", b"fine\n\xff\xfe\n", "line 2: not utf-8"),
        ("a.txt", "文".encode("utf-16"), "if it is UTF-16"),
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n", "empty"),
        ("a.csv", b"text\n", "empty"),
        ("a.txt.gz", b"not gzip", "damaged gzip"),
        ("a.txt.gz", gzip.compress(b"text " * 99, mtime=0)[:-9], "damaged gzip"),
        ("a.parquet", b"PAR1 not", "not a readable Parquet"),
    ],
)
def test_bad_files_are_one_line_that_says_where(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(open_source(tmp_path / name))
    assert "\n" not in str(error.value)


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder, nor a name of the catalogue"):
        open_source(tmp_path / "absent.txt")
    (tmp_path / "a.docx").touch()
    with pytest.raises(ValueError, match="unknown kind of file"):
        open_source(tmp_path / "a.docx")
    with pytest.raises(ValueError, match="no file in this folder"):
        open_source(tmp_path)


def test_a_name_of_the_catalogue_is_a_source():
    rows = iter(open_source("python-stdlib"))
    assert set(next(rows)) == {"path", "text"}


def test_hugging_face_data_is_streamed(monkeypatch):
    import datasets
    asked = []

    def load(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return iter([{"text": "a", "id": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts("hf:some/corpus@zh:validation") == ["a"]
    assert next(iter(open_source("hf:corpus")))["id"] == 1
    assert asked == [("some/corpus", "zh", "validation", True), ("corpus", None, "train", True)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route\nto host")))
    with pytest.raises(ValueError, match=r"hf:corpus: .* could not open it \(no route\)"):
        texts("hf:corpus")
