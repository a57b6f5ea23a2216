"""Drawing with matplotlib, imported late: one figure serves as PNG and, in the page's own colours, as inline SVG."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours in a light page; in an SVG each becomes the page's variable of that name.
INK, SOFT, RULE, BASE, PERTURBED, HEAT = "#1b1f24", "#5c6570", "#d5dae0", "#5b6b7f", "#c2410c", "#2563a8"
_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", BASE: "base", PERTURBED: "perturbed", HEAT: "heat"}

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class may be named '$x$'
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def draw_svg(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Let ``draw`` fill an empty figure; returns it as an ``<svg>`` element to put into a page.

    Args:
        name: distinct within a page; letters only.
        size: width and height in inches of 96 px.
        draw: fills the figure.
    """
    stream = io.StringIO()
    with _style({"svg.hashsalt": name}) as new_figure:
        drawn = new_figure(size)
        draw(drawn)
        drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # In tags alone: a class may be named '#1b1f24'.
    svg = re.sub(r"<[^!>][^>]*>", lambda tag: _fit_tag(tag[0], name), svg)
    return Markup(svg.replace("<svg ", '<svg role="img" ', 1))


def _fit_tag(tag: str, name: str) -> str:
    """Fit a tag of a drawing to the page: with identifiers of its own, the page's font and colours."""
    # Several drawings share one page, and matplotlib gives each of them a 'figure_1'.
    tag = re.sub(r'(\sid="|href="#|url\(#)', rf"\1{name}-", tag)
    # 'font: 10px ...' in older versions of matplotlib.
    tag = re.sub(r"(font-family: |font: [^;\"]*?px )[^;\"]*", r"\1system-ui, sans-serif", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def draw_png(size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Let ``draw`` fill an empty figure; returns it as a PNG file on white, 144 dots an inch."""
    stream = io.BytesIO()
    with _style({}) as new_figure:
        drawn = new_figure(size)
        draw(drawn)
        drawn.savefig(stream, format="png", dpi=144, facecolor="white")
    return stream.getvalue()


@contextmanager
def _away_from_matplotlibrc() -> Iterator[None]:
    """Inside: matplotlib, which reads its settings at the first import, finds none of the current folder's.

    It looks there first, before any place that is the user's own; parts of the file have been evaluated as Python, and
    it can have texts set by LaTeX.
    """
    if "matplotlib" in sys.modules or not Path("matplotlibrc").exists():
        yield
        return
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None, "it is a dependency"
    with chdir(Path(str(spec.origin)).parent):
        yield


@contextmanager
def _style(more: dict[str, Any]) -> Iterator[Callable[[tuple[float, float]], Figure]]:
    with _away_from_matplotlibrc():
        import matplotlib
        from matplotlib.figure import Figure

    settings: Any = {**_STYLE, **more}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Class names in scripts that the font lacks: a box in the PNG; the browser has fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield lambda size: Figure(figsize=size, layout="constrained")
