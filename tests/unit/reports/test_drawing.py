from __future__ import annotations

from html import unescape

import pytest
from matplotlib.figure import Figure

from imbalance_perturb.reports.drawing import PERTURBED, draw_png, draw_svg

NAMES = (
    "$x_2$",
    "$\\frac{",
    "<b>&",
    'url(#x href="#y id="z',
    PERTURBED,
    "_hidden",
    "\u05e2\u05d1\u05e8",
    "皮肤",
    "--><script>",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are(name: str) -> None:
    """No name is mathematics, markup, a colour or a reference, wherever it stands in a drawing."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xticks([0], [name])
        axes.set_title(name)
        axes.annotate(name, (0, 0))

    svg = draw_svg("test", (3, 2), draw)
    assert unescape(svg).count(name) >= 3
    assert "<script" not in svg
    assert draw_png((3, 2), draw).startswith(b"\x89PNG")
