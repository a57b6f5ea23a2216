"""One self-contained HTML page, light or dark as the reader has it: no script, no font, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #5c6570;
  --rule: #d5dae0; --base: #5b6b7f; --perturbed: #c2410c; --heat: #2563a8; --good: #15713a; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --panel: #1d2127; --ink: #e7eaee; --soft: #a0a9b4;
  --rule: #363d46; --base: #93a5bc; --perturbed: #ff9457; --heat: #4d93dd; --good: #5fcf8a; --bad: #ff8a7d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
p { margin: .5rem 0; max-width: 48rem; }
.lead { font-size: 1.05rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
ul.notes { margin: 1rem 0; padding: .75rem 1rem .75rem 2rem; background: var(--panel);
  border-left: 4px solid var(--perturbed); border-radius: 0 6px 6px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; min-width: 5rem; max-width: 18rem;
  white-space: normal; overflow-wrap: anywhere; }
td small { color: var(--soft); display: block; font-size: .8rem; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 54rem; height: auto; }
figcaption { margin-top: .35rem; max-width: 48rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: .5rem 0; font-size: .93rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def render_page(title: str, parts: Iterable[str]) -> str:
    """The whole document: a heading and then the parts, which are HTML already."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what belongs under it (HTML)."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, css_class: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_css(css_class)}>{escape(text)}</p>"


def note_list(notes: Sequence[str]) -> str:
    """What a reader must not miss, or nothing."""
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def cell(text: str, below: str = "", css_class: str = "") -> str:
    """A table cell: plain text, small text below it."""
    small = f"<small>{escape(below)}</small>" if below else ""
    return f"<td{_css(css_class)}>{escape(text)}{small}</td>"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain headers and rows of :func:`cell`; it scrolls on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def figure(svg: str, caption: str) -> str:
    """A drawing (SVG) with a plain caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(*parts: str) -> str:
    """Parts in columns where the screen is wide enough."""
    return f'<div class="pair">{"".join(parts)}</div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values, one line each."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<dl>{lines}</dl>"


def _css(css_class: str) -> str:
    return f' class="{escape(css_class)}"' if css_class else ""
