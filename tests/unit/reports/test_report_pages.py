"""The three report pages: whatever classes and files are called, their names are text and the page stays the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.paired_evaluation import evaluate
from imbalance_perturb.evaluation.results import Evaluation, Interval
from imbalance_perturb.reports.comparison_page import comparison_page
from imbalance_perturb.reports.drawing import draw_svg
from imbalance_perturb.reports.evaluation_page import evaluation_page
from imbalance_perturb.reports.html import iter_facts, render_page
from imbalance_perturb.reports.tuning_page import tuning_page
from imbalance_perturb.selection.comparison.results import Comparison, MethodResult
from imbalance_perturb.selection.comparison.scoring import score_lineup
from imbalance_perturb.selection.cross_validation import Figures
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.tuning.results import FIGURES, HeldOutFigure, TriedCorrection, Tuning

PLAIN = ("melanoma", "nevus", "akiec")
PAGES = ("evaluation", "tuning", "comparison")
LABELS = np.arange(120) % 3
BASE = np.where(np.arange(120) % 5 == 0, (LABELS + 1) % 3, LABELS)
BETTER = np.where(np.arange(120) % 11 == 0, (LABELS + 1) % 3, LABELS)


class _Reader(HTMLParser):
    """Tags with their attributes, and the text of each cell, note, paragraph and fact."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@cache
def make_evaluation() -> Evaluation:
    return evaluate(LABELS, BASE, BETTER, ClassCounts(PLAIN, (90, 30, 5)))


@cache
def make_comparison() -> Comparison:
    counts = ClassCounts(PLAIN, (90, 30, 5))
    methods = [
        MethodResult("none"),
        MethodResult("perturb", parameters={"eps": 0.005}, agreement=(20, 50), passes=3, images_per_second=78.6),
        MethodResult("la", parameters={"tau": 0.5}),
        MethodResult("tau-norm", unavailable="the head is round"),
    ]
    results, advice, _ = score_lineup(methods, LABELS, {"none": BASE, "perturb": BETTER, "la": BASE}, counts)
    return Comparison(PLAIN, (90, 30, 5), "akiec", "mcr", "validation", 120, 120, results, advice, (), 0.95)


@cache
def make_tuning() -> Tuning:
    tried = [TriedCorrection(0.0, None, None, Figures(0.6, 0.4, 0.3, 0.5, 0.8), 0.5, 0.0, 0.0, 0.0, 1.0, True)]
    for eps in (0.001, 0.01):
        figures = Figures(0.6 + eps, 0.4 + eps, 0.3, 0.5, 0.8)
        tried.append(TriedCorrection(eps, 1000.0, "mse", figures, 0.5 - eps, eps, eps, 0.01, 0.03, eps < 0.01))
    return Tuning(
        tried=tuple(tried),
        chosen=1,
        splits=(10, 40, 0),
        held_out={name: HeldOutFigure(0.6, 0.61, 0.01, Interval(-0.01, 0.03)) for name in FIGURES},
        rule=SelectionRule(),
        classes=PLAIN,
        counts=(90, 30, 5),
        support=(40, 40, 40),
        smallest_class="akiec",
        n=120,
        failed={},
        unused_labels=0,
        passes={"forward": 4},
        seconds={},
        confidence_level=0.95,
    )


def render(kind: str, names: tuple[str, ...], file: str) -> str:
    """The page of a kind with these three classes and a source and a note that name this file."""
    about = {"notes": (f"{file} is odd",), "source": {"images": file, "files": {"val": file}}}
    if kind == "tuning":
        summary = (f"Chosen on {file}.",)
        return tuning_page(replace(make_tuning(), classes=names, smallest_class=names[2], summary=summary, **about))
    if kind == "comparison":
        return comparison_page(replace(make_comparison(), classes=names, smallest_class=names[2], **about))
    found = make_evaluation()
    base, perturbed = (
        replace(
            scores,
            worst_class=names[0],
            per_class=tuple(replace(entry, name=name) for entry, name in zip(scores.per_class, names, strict=True)),
        )
        for scores in (found.base, found.perturbed)
    )
    run = {"settings": {"model": {"path": file}}}
    page = replace(found, classes=names, smallest_class=names[2], base=base, perturbed=perturbed, run=run, **about)
    return evaluation_page(page)


@pytest.mark.parametrize("kind", PAGES)
@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.text(min_size=1).filter(str.strip), min_size=3, max_size=3, unique=True),
    file=st.text(st.characters(codec=None), min_size=1).filter(str.strip),
)
def test_names_are_text_and_never_markup(kind: str, names: list[str], file: str) -> None:
    """Any text at all as a class or file name: the page has the tags of a plain one, and says the name as it is."""
    modules = [f"imbalance_perturb.reports.{page}_page.draw_svg" for page in PAGES]
    with mock.patch(modules[0]) as one, mock.patch(modules[1]) as two, mock.patch(modules[2]) as three:
        one.return_value = two.return_value = three.return_value = Markup("<svg></svg>")
        page, plain = render(kind, tuple(names), file), render(kind, PLAIN, "images")
    found = _Reader(page)
    assert found.tags == _Reader(plain).tags
    assert {printable(name) for name in (*names, file)} <= set(found.texts)
    assert f"{printable(file)} is odd" in found.texts
    assert all(character.isprintable() or character == "\n" for character in page)
    page.encode()


HOSTILE = ("<b>&\"'</b>", '#1b1f24 url(#x" id="y font-family: z"', "\x1b[31m\x00\udcff")


@pytest.mark.parametrize("kind", PAGES)
def test_drawings_say_names_as_they_are(kind: str) -> None:
    """In drawings too a name is text: no markup, no colour or reference of the page, no control character."""
    page = render(kind, HOSTILE, "val\x1b[2J")
    found = _Reader(page)
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in _Reader(render(kind, PLAIN, "val")).tags}
    assert {printable(name) for name in HOSTILE} <= set(found.texts)
    assert "\x1b" not in page
    drawn = "".join(found.texts)
    assert "var(--ink)" not in drawn.partition("</style>")[2]
    if kind == "evaluation":
        assert '#1b1f24 url(#x" i…' in found.texts
    if kind == "tuning":
        assert r"SCR (\x1b[31m\x00\udcff)" in found.texts


@pytest.mark.parametrize("kind", PAGES)
def test_what_is_wide_scrolls_in_its_own_box(kind: str) -> None:
    """Every table stands in a box that scrolls, so that a narrow screen does not scroll the page."""
    tags = _Reader(render(kind, PLAIN, "val")).tags
    tables = [index for index, (tag, _) in enumerate(tags) if tag == "table"]
    assert tables
    assert all(("class", "wide") in tags[index - 1][1] for index in tables)


@pytest.mark.parametrize("kind", PAGES)
def test_pages_need_nothing_from_elsewhere(kind: str) -> None:
    """A page refers to nothing but itself, and has no script."""
    found = _Reader(render(kind, PLAIN, "val"))
    attributes = [(name, value or "") for _, pairs in found.tags for name, value in pairs]
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.tags}
    references = [value for name, value in attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in references)
    assert not [name for name, _ in attributes if name.startswith("on")]


def test_templates_escape_everything() -> None:
    """No template switches escaping off."""
    texts = {
        entry.name: entry.read_text() for entry in files("imbalance_perturb.reports").joinpath("templates").iterdir()
    }
    parts = ("base.html", "parts.html", "figures_in_use.html", "gallery.html", "style.css")
    assert {*parts, *(f"{kind}.html" for kind in PAGES)} == set(texts)
    assert not [name for name, text in texts.items() if "safe" in text or "autoescape" in text]


def test_what_a_template_lacks_is_an_error() -> None:
    """A name that a template uses and is not given ends the page, rather than leaving a gap in it."""
    with pytest.raises(UndefinedError, match="comparison"):
        render_page("comparison.html")


def test_facts_are_flat_and_named_in_full() -> None:
    """Tables within tables become lines with the whole path as name; what has no value has no line."""
    source = {"model": {"path": "m.pt", "notes": []}, "crop": None, "mean": [0.5, 0.25], "eps_grid": (), "clip": False}
    expected = [("run model path", "m.pt"), ("run mean", "0.5, 0.25"), ("run clip", False)]
    assert list(iter_facts("run", source)) == expected
    assert next(iter_facts("", source)) == ("model path", "m.pt")


def test_drawing_keeps_its_text() -> None:
    """Colours become the page's own in lines and text alike, but not where a text spells a colour."""
    svg = draw_svg("x", (2, 2), lambda figure: figure.text(0.1, 0.5, '#1b1f24 url(#a href="#b'))
    assert '#1b1f24 url(#a href="#b' in _Reader(svg).texts
    assert "var(--ink)" in svg
