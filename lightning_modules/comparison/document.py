"""A report as a list of parts, written as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from lightning_modules.comparison.store import write_atomically


@dataclass(frozen=True)
class Heading:
    """A heading of level 2."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; with ``code``, lines to type or read as they are."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table; cells are text, and ``strong`` names columns to set in bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG picture."""

    name: str
    png: bytes
    says: str


@dataclass(frozen=True)
class Notes:
    """A list of remarks."""

    lines: Sequence[str]


Part = Heading | Text | Table | Picture | Notes


@dataclass
class Document:
    """A report.

    Attributes:
        title: Its title.
        parts: What follows, in order.
    """

    title: str
    parts: list[Part] = field(default_factory=list)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``report.md`` with its pictures beside it, and ``report.html``. Returns both paths."""
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for part in self.parts:
            if isinstance(part, Picture):
                (pictures / f"{part.name}.png").write_bytes(part.png)
        paths = folder / "report.md", folder / "report.html"
        write_atomically(paths[0], self.markdown())
        write_atomically(paths[1], self.html())
        return paths

    def markdown(self) -> str:
        """The report as Markdown; pictures are files in ``pictures/``."""
        return "\n\n".join([f"# {self.title}", *(_markdown(part) for part in self.parts)]) + "\n"

    def html(self) -> str:
        """The report as HTML with style and pictures inside."""
        body = "\n".join(_html(part) for part in self.parts)
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
        )


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"## {part.text}"
    if isinstance(part, Text):
        return f"```text\n{part.text}\n```" if part.code else part.text
    if isinstance(part, Picture):
        return f"![{part.says}](pictures/{part.name}.png)"
    if isinstance(part, Notes):
        return "\n".join(f"- {line}" for line in part.lines)
    head = [cell.replace("|", "\\|") for cell in part.head]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in part.rows]
    for column in part.strong:
        for row in rows:
            row[column] = f"**{row[column]}**" if row[column] else ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{escape(part.text)}</h2>"
    if isinstance(part, Text):
        return f"<pre>{escape(part.text)}</pre>" if part.code else f"<p>{escape(part.text)}</p>"
    if isinstance(part, Picture):
        data = base64.b64encode(part.png).decode()
        return f'<figure><img alt="{escape(part.says)}" src="data:image/png;base64,{data}"></figure>'
    if isinstance(part, Notes):
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in part.lines) + "</ul>"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td><strong>{escape(cell)}</strong></td>" if column in part.strong else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in part.rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>'


_STYLE = """
body { margin: 0; background: #f5f7f9; color: #22303c; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 2rem auto; padding: 1.5rem 2.5rem 3rem; background: #fff; border-radius: 8px; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #dfe4ea; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #dfe4ea; text-align: left; vertical-align: top; }
th { color: #6b7785; font-weight: 600; } figure { margin: 1.2rem 0; } img { max-width: 100%; }
pre { background: #f5f7f9; padding: .7rem 1rem; overflow-x: auto; } li { margin: .3rem 0; }
"""
