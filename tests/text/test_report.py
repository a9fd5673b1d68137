import json

import pytest

from triform.cli import run
from triform.text import train_tokenizer
from triform.text.report import report, script

from .test_tokenizer import CORPUS


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("汉々〇", "han"),
        ("かカー", "kana"),
        ("aéＡ", "latin"),
        ("1٣½", "digits"),
        ("，。!—+￥", "punctuation"),
        (" \n\u3000", "space"),
        ("😀я", "other"),
    ],
)
def test_scripts(characters, expected):
    assert {script(c) for c in characters} == {expected}


def test_a_report_counts_by_script():
    tokenizer = train_tokenizer(CORPUS, kind="characters")
    found = report(tokenizer, ["天下龘，cat 19"])
    counts = {name: count.characters for name, count in found.scripts.items()}
    assert counts == {"han": 3, "latin": 3, "digits": 2, "punctuation": 1, "space": 1}
    assert (found.tokens, found.unknown_tokens, found.unknown_characters) == (10, 1, [("龘", 1)])
    assert found.unknown_rate == pytest.approx(0.1, abs=1e-12)
    assert (found.lines, found.round_trip_failures) == (1, 1)
    assert found.round_trip_examples == [("天下龘，cat 19", "天下，cat 19")]


def test_words_in_one_token_raise_the_characters_per_token():
    tokenizer = train_tokenizer(CORPUS, kind="bpe", vocab_size=440)
    found = report(tokenizer, CORPUS)
    assert found.scripts["han"].characters_per_token > 1.1
    assert found.round_trip_failures == 0
    assert found.characters == sum(map(len, CORPUS))
    assert len(found.longest_tokens[0]) >= len(found.longest_tokens[-1]) > 1
    bytes_of_one = report(tokenizer, ["龘"]).scripts["han"]
    assert (bytes_of_one.characters, bytes_of_one.tokens) == (1, 3)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="no text"):
        report(train_tokenizer(CORPUS, kind="characters"), [])


def test_train_report_and_encode_from_the_command_line(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(CORPUS), "utf-8")
    out = tmp_path / "tokenizer"
    assert run(["tokenizer", "train", str(text), "--vocab-size", "440", "--out", str(out)]) == 0
    assert "440 tokens" in capsys.readouterr().out
    assert run(["tokenizer", "report", str(out), "--text", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["round_trip_failures"] == 0
    assert run(["tokenizer", "report", str(out), "--text", str(text)]) == 0
    assert "characters per token" in capsys.readouterr().out
    assert run(["tokenizer", "encode", str(out), "天下英雄 [x]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decoded"] == "天下英雄 [x]"


@pytest.mark.parametrize(("size", "message"), [("99999", "larger than this text allows"), ("20", "too small")])
def test_a_failed_training_is_one_line_and_leaves_nothing(tmp_path, capsys, size, message):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(CORPUS), "utf-8")
    assert run(["tokenizer", "train", str(text), "--vocab-size", size, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()
