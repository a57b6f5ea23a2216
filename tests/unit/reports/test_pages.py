from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.evaluation.formatting import by_count, interval_text, p_text, share_text
from imbalance_perturb.evaluation.paired_evaluation import evaluate
from imbalance_perturb.evaluation.results import Evaluation
from imbalance_perturb.files.writing import write_whole
from imbalance_perturb.reports import evaluation_tables
from imbalance_perturb.reports.evaluation_page import evaluation_page
from imbalance_perturb.reports.evaluation_plots import plot_evaluation

HOSTILE = ("<script>alert(1)</script>", "$x$ & [red]y[/red]", "皮肤", "plain")


def make(names: tuple[str, ...], images: int = 400) -> Evaluation:
    random = np.random.default_rng(0)
    classes = len(names)
    labels = random.integers(0, classes, images)
    base = np.where(random.random(images) < 0.6, labels, random.integers(0, classes, images))
    perturbed = np.where(random.random(images) < 0.8, base, labels)
    return evaluate(labels, base, perturbed, ClassCounts(names, [10 + 3 * ((7 * c) % classes) for c in range(classes)]))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.references.append(value)


@pytest.fixture(scope="module")
def page() -> str:
    return evaluation_page(make(HOSTILE))


def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    """The page has no script, loads nothing, and refers only to itself."""
    reader = _Reader()
    reader.feed(page)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(reference.startswith(("#", "data:")) for reference in reader.references)
    # Names of XML namespaces are never fetched.
    assert set(re.findall(r"https?://[^\"<\s]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in page


def test_drawings_do_not_share_identifiers(page: str) -> None:
    """The four drawings share one page: identifiers are distinct and every reference has its target."""
    reader = _Reader()
    reader.feed(page)
    assert reader.tags.count("svg") == 4
    assert len(reader.ids) == len(set(reader.ids))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert used
    assert set(used) <= set(reader.ids)


def test_class_names_are_text(page: str) -> None:
    """Class names are text, never markup, in tables and drawings alike."""
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$x$ &amp; [red]y[/red]" in page


def test_drawings_take_the_colours_of_the_page(page: str) -> None:
    """Drawings use the page's variables, so that they read in light and in dark."""
    assert "prefers-color-scheme: dark" in page
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawings))
    assert "var(--perturbed)" in drawings


def test_page_shows_the_figures(page: str) -> None:
    """The figures of the evaluation stand in the page."""
    evaluation = make(HOSTILE)
    for scores in (evaluation.base, evaluation.perturbed):
        for value in (scores.mcr, scores.accuracy, scores.macro_f1, scores.worst_class_recall):
            assert share_text(value) in page
    assert f"{evaluation.n:,} images" in page


@pytest.mark.parametrize("classes", [2, 16, 60])
def test_plot_is_a_picture_whatever_the_number_of_classes(classes: int) -> None:
    """The plot is a PNG of the same size for two classes and for many."""
    png = plot_evaluation(make(tuple(f"class {c}" for c in range(classes))))
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size) == ("PNG", (1872, 1368))
        assert len(set(image.convert("L").resize((60, 40)).tobytes())) > 5


def test_pages_of_many_classes() -> None:
    """A page of sixty classes is made, each with its row."""
    page = evaluation_page(make(tuple(f"class {c}" for c in range(60))))
    assert page.count("<tr>") > 60


def test_order_is_from_the_largest_class() -> None:
    """Classes are shown from the most training images to the fewest, ties by index."""
    evaluation = evaluate([0, 1, 2], [0, 1, 2], [0, 1, 2], ClassCounts(("a", "b", "c"), (5, 9, 5)))
    assert by_count(evaluation.counts) == [1, 0, 2]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """A report appears whole; where it cannot be written, the old one stays and no remains lie about."""
    path = tmp_path / "r.html"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(OutputFileError, match=r"none/r\.html: cannot be written \(No such file"):
        write_whole(tmp_path / "none" / "r.html", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputFileError, match="folder: is a folder, not a file"):
        write_whole(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "r.html"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (share_text(0.59034), "0.5903"),
        (share_text(-0.00004, signed=True), "+0.0000"),
        (share_text(None), "–"),
        (p_text(0.0004), "<0.001"),
        (p_text(0.0421), "0.042"),
        (p_text(0.193), "0.19"),
        (p_text(None), "–"),
        (interval_text(None), ""),
    ],
)
def test_wording(text: str, expected: str) -> None:
    """Numbers carry as many digits as mean something, and zero has no minus."""
    assert text == expected


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("names", [HOSTILE, tuple(f"a long class name {c}" for c in range(9)), ("a", "b")])
def test_terminal_tables_lose_no_digit(
    names: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every width no line is longer than the terminal, and a matrix is shown with all its digits or not at all."""
    monkeypatch.setenv("COLUMNS", str(width))
    evaluation = make(names, images=30_000)
    evaluation_tables.print_evaluation(evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert all(Console().measure(line).maximum <= width for line in lines if "[" not in line)
    text = "\n".join(lines)
    if "Confusion matrix, perturbed" in text:
        rows = text.partition("Confusion matrix, perturbed")[2]
        for row in evaluation.perturbed.confusion_matrix:
            assert all(f"{count:,}" in rows for count in row)
    else:
        assert "too wide for this terminal" in text


def test_tables_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A class name with square brackets is no markup in the terminal."""
    monkeypatch.setenv("COLUMNS", "160")
    evaluation_tables.print_evaluation(make(("[red]a[/red]", "b")))
    assert "[red]a[/red]" in capsys.readouterr().out


def test_tables_obey_no_control_character(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A class name cannot colour, clear or end the terminal's lines: its control characters are written out."""
    monkeypatch.setenv("COLUMNS", "200")
    evaluation_tables.print_evaluation(make(("a\x1b[2Jb", "c\rd\udcff", "e")))
    out = capsys.readouterr().out
    assert r"a\x1b[2Jb" in out
    assert r"c\rd\udcff" in out
    assert not {"\x1b", "\r"} & set(out)
