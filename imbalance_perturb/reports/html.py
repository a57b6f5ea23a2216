"""Filling the templates of the report pages: each page is one HTML file that needs nothing from elsewhere.

A page is light or dark as its reader has it, without script, font or anything from a network. All that templates are
given is escaped, and control characters are written out: class and file names are text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.formatting import (
    independence_text,
    interval_text,
    level_text,
    p_text,
    rate_text,
    share_text,
)


def render_page(template: str, **context: object) -> str:
    """Render the whole page as HTML text.

    Args:
        template: file in the folder ``templates``.
        context: what the template names; of it, only a drawing (:class:`Markup`) is taken for HTML.
    """
    return _environment().get_template(template).render(context)


def iter_facts(name: str, entry: object) -> Iterator[tuple[str, object]]:
    """Yield names and values of a nested table, one for each line of a report; leaves out what has no value."""
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            yield from iter_facts(f"{name} {key}".strip().replace("_", " "), value)
    elif entry not in (None, [], ()):
        yield name, ", ".join(map(str, entry)) if isinstance(entry, list | tuple) else entry


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("imbalance_perturb", "reports/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share_text,
        "interval": interval_text,
        "p_value": p_text,
        "level": level_text,
        "independence": independence_text,
        "rate": rate_text,
        "number": "{:,}".format,
        "short": "{:g}".format,
    }
    return environment


def _finalize(value: object) -> object:
    """Return what a template writes for a value: HTML unchanged, text with its control characters escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
