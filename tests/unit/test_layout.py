"""The package's folders, as CONTRIBUTING.md describes them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import imbalance_perturb

PACKAGE = Path(imbalance_perturb.__file__).parent

#: The two that offer names to others.
PUBLIC = {PACKAGE / "__init__.py", PACKAGE / "models" / "__init__.py"}

ROOT = Path(__file__).parents[2]

#: Where Python files lie.
FOLDERS = ("imbalance_perturb", "tests", "benchmarks", "examples")

#: Pages for people; the change log names files as they were called then.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/RESULTS.md", *sorted(ROOT.glob("docs/*.md"))]

#: Files in a user's folder that the pages speak of.
USERS_OWN = {"torch.py", "sitecustomize.py"}

INNER = sorted(set(PACKAGE.rglob("__init__.py")) - PUBLIC)


@pytest.mark.parametrize("path", INNER, ids=lambda path: str(path.relative_to(PACKAGE).parent))
def test_an_inner_package_holds_a_docstring_alone(path: Path) -> None:
    """Importing one module of a folder loads no other: its ``__init__.py`` says what the folder is for, no more."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    assert len(module.body) == 1


def test_unit_tests_lie_in_the_folders_of_the_package() -> None:
    """A reader finds the tests of a folder in the folder of the same name."""
    units = Path(__file__).parent
    folders = {path.parent.relative_to(units) for path in units.rglob("test_*.py")} - {Path(), Path("benchmarks")}
    assert folders <= {path.parent.relative_to(PACKAGE) for path in INNER} | {Path("models")}


def test_the_map_names_every_folder() -> None:
    """CONTRIBUTING.md has every folder of the package in its map, and no other."""
    drawn = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"(?:^|\| )(\w+)/", drawn, re.MULTILINE))
    assert named == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_are_there(page: Path) -> None:
    """A Python file that a page of the project names is in the checkout, under the folders that the page says."""
    there = [f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    named = re.findall(r"`(?:python )?([\w/]+\.py)\b", page.read_text(encoding="utf-8"))
    gone = [name for name in named if not any(path.endswith(f"/{name}") for path in there)]
    assert set(gone) <= USERS_OWN


def test_no_module_is_longer_than_a_reader_holds() -> None:
    """A module of the package has at most 300 lines."""
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > 300} == {}
