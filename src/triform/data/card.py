"""The data card: what prepared data are made of, for people, with plots."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from triform.config.files import replacing

from .catalogue import entries
from .shards import Shards

CARD, PLOT = "card.md", "card.svg"


@dataclass(frozen=True)
class DataCard:
    """Facts of the prepared data in a folder.

    recipe: what they were made by. sources: each with its weight. cleaned: the manifest of `triform.data.prepare`, or None.
    """

    folder: Path
    recipe: Mapping[str, Any]
    sources: Sequence[tuple[str, float]]
    cleaned: Mapping[str, Any] | None
    vocab_size: int | None

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        keys = ("read", "kept", "characters_read", "characters_kept", "dropped", "overlap")
        sources: list[dict[str, Any]] = [{"source": name, "weight": weight} for name, weight in self.sources]
        for told, each in zip(sources, self.cleaned["sources"] if self.cleaned else (), strict=False):
            told |= {key: each[key] for key in keys} | {"share": told["weight"] * each["characters_kept"] / self._weighted()}
        found = {} if self.cleaned is None else {key: self.cleaned[key] for key in keys}
        parts = {
            name: {"documents": len(shards), "tokens": sum(int(shards.column(column).offsets[-1]) for column in shards.columns)}
            for name, shards in self._shards().items()
        }
        return {"folder": str(self.folder), **found, "sources": sources, "vocab_size": self.vocab_size, "parts": parts}

    def _weighted(self) -> float:
        assert self.cleaned is not None
        return sum(weight * each["characters_kept"] for (_, weight), each in zip(self.sources, self.cleaned["sources"], strict=True)) or 1

    def _shards(self) -> dict[str, Shards]:
        places = {name: self.folder / "data" / name for name in ("train", "validation")}
        return {name: Shards.open(place) for name, place in places.items() if place.is_dir()}

    def write(self) -> Path:
        """Write the card, Markdown with one picture, into the folder; returns its path."""
        self._plot(self.folder / PLOT)
        with replacing(self.folder / CARD) as file:
            file.write_text(self._markdown(), "utf-8")
        return self.folder / CARD

    def _markdown(self) -> str:
        facts = self.to_dict()
        lines = ["# Data card", "", f"![lengths, sources, dropped]({PLOT})", "", "## Sources", ""]
        names = entries()
        rows = []
        for each in facts["sources"]:
            counts = [f"{each[key]:,}" for key in ("read", "kept", "characters_kept")] if "read" in each else [""] * 3
            share = f"{each['share']:.1%}" if "share" in each else ""
            licence = names[each["source"]].licence if each["source"] in names else "not known"
            rows.append([each["source"], f"{each['weight']:g}", *counts, share, licence])
        lines += _table(["source", "times an epoch", "documents read", "kept", "characters kept", "share", "licence"], rows)
        if self.cleaned is not None:
            lines += self._cleaning(self.cleaned)
        lines += ["", "## Tokens", ""]
        parts = [[name, f"{part['documents']:,}", f"{part['tokens']:,}"] for name, part in facts["parts"].items()]
        lines += _table(["part", "documents", "tokens"], parts)
        made = yaml.safe_dump(dict(self.recipe), allow_unicode=True, sort_keys=False)
        if self.vocab_size is not None:
            lines += ["", f"The vocabulary has {self.vocab_size:,} tokens."]
        lines += ["", "## Made by", "", "```yaml", made.rstrip(), "```"]
        return "\n".join(lines) + "\n"

    def _cleaning(self, manifest: Mapping[str, Any]) -> list[str]:
        read = manifest["read"]
        rows = [[reason, f"{count:,}", f"{count / read:.2%}"] for reason, count in manifest["dropped"].items()]
        rows.append(["kept", f"{manifest['kept']:,}", f"{manifest['kept'] / read:.2%}"])
        lines = ["", "## Dropped, and why", "", *_table(["reason", "documents", "share"], rows)]
        lines += ["", "Each dropped document has a line in the folder `dropped`."]
        if manifest["evaluation_sets"]:
            shared = manifest["overlap"]
            counts = [
                [each["name"], f"{each['texts']:,}", f"{each['too_short']:,}", f"{shared.get(each['name'], 0):,}"]
                for each in manifest["evaluation_sets"]
            ]
            head = ["evaluation set", "texts", "too short to look for", "documents that share an n-gram"]
            lines += ["", "## Overlap with evaluation sets", "", *_table(head, counts)]
        return lines

    def _plot(self, file: Path) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        facts = self.to_dict()
        panels = ["lengths"] + (["sources", "dropped"] if self.cleaned is not None else [])
        figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
        axes = dict(zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True))
        for name, shards in self._shards().items():
            lengths = np.sum([shards.column(column).lengths for column in shards.columns], axis=0)
            edges = np.geomspace(1, max(2, lengths.max(initial=1) + 1), 40)
            axes["lengths"].hist(lengths, bins=edges, label=name, alpha=0.8)
        axes["lengths"].set(xscale="log", yscale="log", xlabel="tokens", ylabel="documents", title="Length")
        axes["lengths"].legend(frameon=False)
        if self.cleaned is not None:
            axes["sources"].barh(*_bars((each["source"], 100 * each["share"]) for each in facts["sources"]))
            axes["sources"].set(xlabel="% of the characters of an epoch", title="Sources")
            dropped = list(self.cleaned["dropped"].items()) or [("none", 0)]
            axes["dropped"].barh(*_bars(dropped))
            axes["dropped"].set(xlabel="documents", title="Dropped")
            for name in ("sources", "dropped"):
                axes[name].invert_yaxis()
        for axis in axes.values():
            axis.spines[["top", "right"]].set_visible(False)
        style: Any = {"svg.hashsalt": "triform", "svg.fonttype": "none"}
        with matplotlib.rc_context(style), replacing(file) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the viewer's fonts draw the text, and have Chinese
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _bars(pairs: Iterable[tuple[str, float]]) -> tuple[list[str], list[float]]:
    names, values = [], []
    for i, (name, value) in enumerate(pairs):
        shown = name if len(name) <= 24 else "…" + name[-23:]
        names.append(shown if shown not in names else f"{shown} ({i})")
        values.append(value)
    return names, values


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in cells)]
