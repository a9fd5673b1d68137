"""What the demo's models are held against, worked out in the same run from the same training text."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from triform.text.segment import segmenter


class Unigram:
    """Each token by how often it stands in the training text, plus one."""

    def __init__(self, documents: Iterable[Sequence[int]], vocab_size: int) -> None:
        counts: Counter[int] = Counter()
        for ids in documents:
            counts.update(ids)
        self.total, self.counts, self.vocab_size = sum(counts.values()), counts, vocab_size

    def bits(self, ids: Sequence[int]) -> float:
        """The information (bits) of a document's tokens."""
        return -sum(math.log2((self.counts[t] + 1) / (self.total + self.vocab_size)) for t in ids)


class Trigram:
    """Trigram, bigram, unigram and uniform shares interpolated (Jelinek and Mercer 1980).

    The weights depend on how often the two tokens before were seen; they are fitted by
    expectation maximisation on the last `held_out` training documents, and the counts
    are then taken from all of them.
    """

    def __init__(self, documents: Sequence[Sequence[int]], vocab_size: int, held_out: int = 10, rounds: int = 15) -> None:
        self.vocab_size = vocab_size
        self._count(documents[:-held_out])
        rows = [row for ids in documents[-held_out:] for row in self._shares(ids)]
        self.weights = self._fit(rows, rounds)
        self._count(documents)

    def _count(self, documents: Iterable[Sequence[int]]) -> None:
        self.one: Counter[int] = Counter()
        self.two: Counter[tuple[int, int]] = Counter()
        self.three: Counter[tuple[int, int, int]] = Counter()
        self.before: Counter[int] = Counter()
        self.before_two: Counter[tuple[int, int]] = Counter()
        for ids in documents:
            padded = [-1, -1, *ids]
            self.one.update(ids)
            self.before.update(padded[1:-1])
            self.two.update(zip(padded[1:], ids, strict=False))
            self.before_two.update(pairwise(padded[:-1]))
            self.three.update(zip(padded, padded[1:], ids, strict=False))
        self.total = sum(self.one.values())

    def _shares(self, ids: Sequence[int]) -> Iterable[tuple[tuple[float, float, float, float], tuple[int, int]]]:
        a, b = -1, -1
        for c in ids:
            two, one = self.before_two[a, b], self.before[b]
            shares = (
                self.three[a, b, c] / two if two else 0.0,
                self.two[b, c] / one if one else 0.0,
                self.one[c] / self.total,
                1 / self.vocab_size,
            )
            yield shares, (min(two, 100).bit_length(), min(one, 1000).bit_length())
            a, b = b, c

    @staticmethod
    def _fit(rows: list[tuple[tuple[float, float, float, float], tuple[int, int]]], rounds: int) -> dict[tuple[int, int], list[float]]:
        weights: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.25] * 4)
        for _ in range(rounds):
            sums: dict[tuple[int, int], list[float]] = defaultdict(lambda: [1e-6] * 4)
            for shares, bucket in rows:
                parts = [w * s for w, s in zip(weights[bucket], shares, strict=True)]
                whole = sum(parts)
                into = sums[bucket]
                for i, part in enumerate(parts):
                    into[i] += part / whole
            weights = defaultdict(lambda: [0.25] * 4, {b: [v / sum(s) for v in s] for b, s in sums.items()})
        return dict(weights)

    def bits(self, ids: Sequence[int]) -> float:
        """The information (bits) of a document's tokens, the two before its first being its beginning."""
        return -sum(math.log2(sum(w * s for w, s in zip(self._weight(b), shares, strict=True))) for shares, b in self._shares(ids))

    def _weight(self, bucket: tuple[int, int]) -> list[float]:
        """A bucket's weights; one that the held-out documents did not hold takes those of the nearest that they did."""
        if bucket not in self.weights:
            near = min(self.weights, key=lambda b: (abs(b[0] - bucket[0]) + abs(b[1] - bucket[1]), b))
            self.weights[bucket] = self.weights[near]
        return self.weights[bucket]


class MostFrequent:
    """For each syllable the character that most often stands for it; what was never seen stays itself."""

    def __init__(self, pairs: Iterable[tuple[Sequence[str], str]]) -> None:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for syllables, text in pairs:
            for syllable, character in zip(syllables, text, strict=True):
                counts[syllable][character] += 1
        self.best = {syllable: found.most_common(1)[0][0] for syllable, found in counts.items()}

    def write(self, syllables: Sequence[str]) -> str:
        """The characters for some syllables."""
        return "".join(self.best.get(s, s) for s in syllables)


def linear_accuracy(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Accuracy (0 to 1) of TF-IDF with logistic regression on (text, label) pairs, by what it counts.

    Words and pairs of words as jieba cuts them, and runs of one to three characters.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ValueError('the demo needs scikit-learn; pip install "triform[demo]"') from None
    features = {
        "words": TfidfVectorizer(tokenizer=segmenter("jieba"), token_pattern=None, ngram_range=(1, 2), sublinear_tf=True),
        "characters": TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True),
    }
    found = {}
    for name, vectors in features.items():
        model = LogisticRegression(C=10.0, max_iter=1000)
        model.fit(vectors.fit_transform([text for text, _ in train]), [label for _, label in train])
        found[name] = float(model.score(vectors.transform([text for text, _ in test]), [label for _, label in test]))
    return found


def character_errors(written: str, wanted: str) -> int:
    """Levenshtein distance: characters to insert, drop or change."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(written, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]
