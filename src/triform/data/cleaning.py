"""What is done to documents before training, as data: the part `clean` of a recipe's data."""

from __future__ import annotations

from typing import Literal

from triform.config.spec import at_least, spec

LONGEST_NGRAM = 64


@spec
class WeightedSource:
    """One source of a mixture. weight: how often a document of it comes in one epoch of the mixture.

    2 is twice; 0.5 is every second document, chosen by its content.
    """

    source: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1000:
            raise ValueError(f"weight: expected a number above 0 and at most 1000, got {self.weight}")


@spec
class Normalize:
    """How text is written. unicode: the Unicode normal form (UAX 15), None for as it is.

    control: control characters, byte order marks, invisible spaces and marks that turn the direction of writing are
    taken out, and line ends become line feeds. half_width: full-width letters, digits and spaces become ASCII;
    punctuation stays. simplified: traditional Chinese becomes simplified, by OpenCC.
    """

    unicode: Literal["NFC", "NFKC"] | None = "NFC"
    control: bool = True
    half_width: bool = False
    simplified: bool = False


@spec
class Filter:
    """Which documents are kept. Lengths are in characters without white space; null or an empty list switches a rule off.

    script: at least `script_share` of the letters are of it (digits, punctuation and symbols are not counted).
    symbols: the largest share of characters that are neither letters, digits, punctuation nor white space.
    The rest are the rules of repetition of Gopher (Rae et al. 2021, table A1) and their limits: the share of lines that
    are repeats of earlier ones, and of the characters in them; the share of characters in the most frequent 2-, 3- and
    4-gram, and in all n-grams of 5, 6, ... that come more than once. Grams are of words, and of single characters in scripts
    without spaces; as Gopher asks for 50 words, texts of fewer are not judged by them.
    """

    min_length: int | None = 10
    max_length: int | None = 1_000_000
    script: Literal["han", "kana", "latin"] | None = None
    script_share: float = 0.5
    symbols: float | None = 0.1
    duplicate_lines: float | None = 0.3
    duplicate_line_characters: float | None = 0.2
    top_ngrams: tuple[float, ...] = (0.2, 0.18, 0.16)
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)

    def __post_init__(self) -> None:
        at_least(self, 0, "min_length")
        at_least(self, 1, "max_length")
        shares = {name: getattr(self, name) for name in ("script_share", "symbols", "duplicate_lines", "duplicate_line_characters")}
        for name in ("top_ngrams", "duplicate_ngrams"):
            if len(getattr(self, name)) > 16:
                raise ValueError(f"{name}: expected at most 16 limits, got {len(getattr(self, name))}")
            shares |= {f"{name}[{i}]": value for i, value in enumerate(getattr(self, name))}
        for name, value in shares.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {value}")


@spec
class Deduplicate:
    """Of documents that are the same but for white space the first is kept.

    near: also of those whose sets of `ngram`-grams have at least this Jaccard similarity, estimated by MinHash with
    `permutations` hashes (Broder 1997) among candidates from banding (Leskovec et al., Mining of Massive Datasets, 3.4).
    """

    near: float | None = None
    ngram: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        if self.near is not None and not 0.3 <= self.near <= 1:
            raise ValueError(f"near: expected a similarity from 0.3 to 1, or null, got {self.near}")
        if not 1 <= self.ngram <= LONGEST_NGRAM:
            raise ValueError(f"ngram: expected 1 to {LONGEST_NGRAM}, got {self.ngram}")
        if not 16 <= self.permutations <= 1024:
            raise ValueError(f"permutations: expected 16 to 1024, got {self.permutations}")


@spec
class Overlap:
    """Documents that share an n-gram with an evaluation set (Brown et al. 2020, appendix C, with 13 words) are dropped or reported.

    sources: the evaluation sets, all columns of text of them.
    """

    sources: tuple[str, ...]
    ngram: int = 13
    action: Literal["drop", "report"] = "drop"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: expected at least one evaluation set")
        if not 2 <= self.ngram <= LONGEST_NGRAM:
            raise ValueError(f"ngram: expected 2 to {LONGEST_NGRAM}, got {self.ngram}")


@spec
class Clean:
    """The stages in their order; null leaves one out. columns: those that hold text; they are judged together."""

    columns: tuple[str, ...] = ("text",)
    normalize: Normalize | None = Normalize()
    filter: Filter | None = Filter()
    deduplicate: Deduplicate | None = Deduplicate()
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns: expected at least one")
