"""Shapes for sizes, and numbers as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.planner import parameters, quantities, shapes


@pytest.mark.parametrize("form", shapes.FORMS)
@pytest.mark.parametrize("size", [3_000_000, 30_000_000, 120_000_000, 1_300_000_000, 7_000_000_000, 70_000_000_000, 175_000_000_000])
def test_a_size_is_met(form: str, size: int) -> None:
    model = shapes.shaped(form, size)
    assert model.form == form
    assert parameters(model).total == pytest.approx(size, rel=0.02 if size < 10_000_000 else 0.01)


def test_known_sizes_have_known_shapes() -> None:
    """GPT-2's 124M has a width of 768 and 12 layers, LLaMA's 7B 4,096 and 32."""
    small, large = shapes.shaped("decoder-only", 124_000_000).decoder, shapes.shaped("decoder-only", 7_000_000_000).decoder
    assert small is not None
    assert large is not None
    assert 640 <= small.width <= 896
    assert 3072 <= large.width <= 5120


@pytest.mark.parametrize("size", [50_000, 10**13])
def test_sizes_without_sense(size: int) -> None:
    with pytest.raises(ValueError, match="parameters was expected"):
        shapes.shaped("decoder-only", size)


def test_a_table_that_leaves_no_room() -> None:
    with pytest.raises(ValueError, match="lower the vocabulary"):
        shapes.shaped("decoder-only", 2_000_000, 250_000)


@pytest.mark.parametrize("word", ["decoder", "Encoder", "encoder_decoder", "decoder-only"])
def test_words_for_forms(word: str) -> None:
    assert shapes.form_of(word) in shapes.FORMS


def test_a_form_that_is_none() -> None:
    with pytest.raises(ValueError, match="encoder-decoder, got 'rnn'"):
        shapes.form_of("rnn")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.2B", 1_200_000_000), ("120M", 120_000_000), ("300M tokens", 300_000_000), ("20_000", 20_000), ("1e9", 10**9), (7, 7)],
)
def test_counts(text: str, number: int) -> None:
    assert quantities.count(text) == number


@pytest.mark.parametrize(("text", "number"), [("24GB", 24 * 10**9), ("512MiB", 512 * 2**20), ("100", 100)])
def test_sizes(text: str, number: int) -> None:
    assert quantities.size(text) == number


@pytest.mark.parametrize(("text", "number"), [("24h", 86400), ("90min", 5400), ("3 days", 259200), ("10", 10)])
def test_times(text: str, number: float) -> None:
    if text == "10":
        with pytest.raises(ValueError, match="a time such as"):
            quantities.seconds(text)
    else:
        assert quantities.seconds(text) == number


@pytest.mark.parametrize("read", [quantities.count, quantities.size, quantities.seconds])
@pytest.mark.parametrize("text", ["0h", "-3", "", "nan", "inf", "1.2.3", "many", "1e999h", "0"])
def test_what_is_no_number(read: object, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read(text, "--tokens")  # type: ignore[operator]


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (quantities.count, quantities.size, quantities.seconds):
        try:
            assert read(text) >= 0
        except ValueError:
            continue


@pytest.mark.parametrize(("text", "is_count"), [("120M", True), ("1.5b", True), ("gpt2", False), ("12", False), ("7bx", False)])
def test_sizes_and_names(text: str, is_count: bool) -> None:
    assert quantities.is_count(text) == is_count


@pytest.mark.parametrize(
    ("value", "words"), [(2769.2, "46.2 min"), (5, "5 s"), (30 * 86400, "30.0 days"), (10 * 365.25 * 86400, "10.0 years"), (9e4, "25.0 h")]
)
def test_durations(value: float, words: str) -> None:
    assert quantities.duration(value) == words


@pytest.mark.parametrize(("value", "words"), [(24e9, "24 GB"), (120e9, "120 GB"), (1.5e12, "1.5 TB"), (5e6, "5 MB"), (12, "12 B")])
def test_data_sizes(value: float, words: str) -> None:
    assert quantities.data_size(value) == words
