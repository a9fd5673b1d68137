"""The picture of an architecture: valid, complete, nothing on top of anything else."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
import strategies
from hypothesis import given, settings

from triform import config
from triform.planner import diagram, mask_grid, mask_svg
from triform.planner.mask import EARLIER, HIDDEN, ITSELF, LATER, OTHER
from triform.planner.svg import fit, text_width

SVG = "{http://www.w3.org/2000/svg}"
Rectangle = tuple[float, float, float, float]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def placed(svg: str) -> list[tuple[str, Rectangle]]:
    """Level texts and the rectangles they take up, by the estimate that the layout uses too."""
    found = []
    for group, (dx, dy) in _groups(ET.fromstring(svg)):
        for element in group.findall(f"{SVG}text"):
            if "transform" in element.attrib:
                continue
            size, text = float(element.attrib["font-size"]), element.text or ""
            width = text_width(text, size, "font-weight" in element.attrib)
            x = float(element.attrib["x"]) + dx - {"middle": width / 2, "end": width}.get(element.attrib.get("text-anchor", ""), 0)
            y = float(element.attrib["y"]) + dy
            found.append((text, (x, y - 0.75 * size, x + width, y + 0.2 * size)))
    return found


def _groups(root: ET.Element) -> list[tuple[ET.Element, tuple[float, float]]]:
    groups = [(root, (0.0, 0.0))]
    for group in root.findall(f"{SVG}g"):
        x, y = re.findall(r"-?\d+\.?\d*", group.attrib["transform"])
        groups.append((group, (float(x), float(y))))
    return groups


def overlaps(svg: str) -> list[tuple[str, str]]:
    return [
        (one, two)
        for (one, a), (two, b) in itertools.combinations(placed(svg), 2)
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]


def outside(svg: str) -> list[str]:
    x, y, width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split())
    return [text for text, (a, b, c, d) in placed(svg) if a < x or b < y or c > x + width or d > y + height]


def grids(svg: str) -> int:
    """Masks drawn: each has one path of hidden or seen cells and one plate behind it."""
    return len(re.findall(r'<rect [^>]*fill="#cbd5e1"/>', svg))


@settings(max_examples=60, deadline=None)
@given(strategies.models())
def test_any_model_is_drawn_without_overlap(model: config.Model) -> None:
    svg = diagram([("模型 <&> model", model)])
    assert overlaps(svg) == []
    assert outside(svg) == []


def test_overlap_is_seen() -> None:
    svg = diagram([("gpt2", config.preset("gpt2"))])
    text = re.search(r"<text[^>]*>Feed-forward</text>", svg)
    assert text is not None
    moved = svg.replace(text[0], text[0] + text[0].replace("Feed-forward", "another"))
    assert ("Feed-forward", "another") in overlaps(moved)


@pytest.mark.parametrize("name", config.presets())
def test_presets_have_a_grid_for_each_distinct_attention(name: str) -> None:
    model = config.preset(name)
    stacks = [model.text, model.image] if isinstance(model, config.DualEncoder) else [model.encoder, model.decoder]
    blocks = [block for stack in stacks if stack for block in dict.fromkeys(stack.pattern)]
    svg = diagram([(name, model)])
    assert grids(svg) == sum(1 + (block.cross is not None) for block in blocks)
    for block in blocks:
        assert f"{block.attention.heads} heads of" in svg
        assert (block.attention.kv_heads is None) or f"{block.attention.kv_heads} kv head" in svg
    assert overlaps(svg) == []


def test_what_a_picture_says() -> None:
    svg = diagram([("bert-base", config.preset("bert-base")), ("gpt2", config.preset("gpt2"))])
    assert set(texts(svg)) >= {
        "bert-base", "gpt2", "encoder-only, 109 M parameters", "decoder-only, 124 M parameters", "Encoder", "Decoder", "× 12",
        "bidirectional", "causal", "12 heads of 64", "hidden 3,072, GELU", "+ 512 learned positions", "LayerNorm", "tied weights",
    }  # fmt: skip
    assert "tied weights" not in texts(diagram([("llama", config.preset("llama-3-8b"))]))
    root = ET.fromstring(svg)
    assert root.find(f"{SVG}title") is not None
    assert "109,482,240" in (root.findtext(f"{SVG}desc") or "")


def test_nothing_from_outside_and_no_ids() -> None:
    svg = diagram([(name, config.preset(name)) for name in ("switch-base-8", "clip-vit-base-patch32", "gemma3-270m")])
    assert not re.search(r"\bid=|href|url\(|<style|<script|<image|@import", svg)
    assert svg.count("http") == 1  # the namespace


@pytest.mark.parametrize(
    ("placement", "norms", "first"), [("pre", 2, "LayerNorm"), ("post", 2, "Self-attention"), ("sandwich", 4, "LayerNorm")]
)
def test_where_the_norms_stand(placement: str, norms: int, first: str) -> None:
    model = config.resolve("gpt2", [f"decoder.pattern[0].placement={placement}", "decoder.norm=null"])
    words = texts(diagram([("x", model)]))
    assert words.count("LayerNorm") == norms
    assert next(w for w in words if w in ("LayerNorm", "Self-attention")) == first


def test_experts_and_the_order_of_layers() -> None:
    words = texts(diagram([("switch", config.preset("switch-base-8"))]))
    assert words.count("router") == 2
    assert words.count("each token to 1 of 8") == 2
    assert words.count("A") == words.count("B") == 12
    assert {"A  × 6", "B  × 6", "shared", "keys and values"} <= set(words)


def test_names_are_escaped() -> None:
    svg = diagram([('<script>"&', config.preset("gpt2"))])
    assert "<script" not in svg
    assert '<script>"&' in texts(svg)


@pytest.mark.parametrize(
    ("mask", "window", "seen"),
    [
        ("bidirectional", None, lambda q, k: True),
        ("causal", None, lambda q, k: k <= q),
        ("causal", 2, lambda q, k: k <= q < k + 2),
        ("bidirectional", 2, lambda q, k: abs(q - k) < 2),
        ("prefix", None, lambda q, k: k <= q or (q < 3 and k < 3)),
    ],
)
def test_grids(mask: str, window: int | None, seen) -> None:  # type: ignore[no-untyped-def]
    attention = config.Attention(heads=1, mask=mask, window=window)  # type: ignore[arg-type]
    grid = mask_grid(attention, 6, prefix=3)
    assert grid == [[int(seen(q, k)) for k in range(6)] for q in range(6)]
    svg = mask_svg(attention, 6)
    assert ET.fromstring(svg).tag == f"{SVG}svg"
    assert (LATER in svg) == any(grid[q][k] for q in range(6) for k in range(q + 1, 6))


def test_grid_agrees_with_the_model() -> None:
    import torch

    from triform.nn.mask import visible

    for mask, window in itertools.product(("bidirectional", "causal", "prefix"), (None, 3)):
        attention = config.Attention(heads=1, mask=mask, window=window)  # type: ignore[arg-type]
        distance = torch.arange(7)[None, None, :] - torch.arange(7)[None, :, None]
        seen = visible(attention, distance, (torch.arange(7) < 4)[None])
        assert mask_grid(attention, 7, prefix=4) == seen[0].int().tolist()


def test_a_cross_grid_has_its_own_colour() -> None:
    svg = mask_svg([[1, 1], [1, 0]], cross=True, title="跨注意力")
    assert OTHER in svg and HIDDEN in svg and ITSELF not in svg and EARLIER not in svg  # noqa: PT018
    with pytest.raises(ValueError, match="rows of one length"):
        mask_svg([[1], [1, 0]])


def test_long_names_are_cut() -> None:
    assert text_width(fit("三国演义" * 50, 19, 300), 19) <= 300
    assert fit("short", 19, 300) == "short"
