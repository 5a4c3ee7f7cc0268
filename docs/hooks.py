"""What `make docs` adds to the pages: generated references, and names instead of links to files
that are not part of the site.
"""

import posixpath
import re
from typing import Any

from segserve.runtime.errors import error_classes

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_MARK = "<!-- generated -->"


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:  # noqa: ANN401
    """Called by MkDocs for every page."""
    uri = page.file.src_uri
    if _MARK in markdown:
        markdown = markdown.replace(_MARK, _GENERATED[uri]())

    def as_name(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(uri), match["target"]))
        return f"{match['text']} (`{target[3:]}`)" if target.startswith("../") else match[0]

    return _LINK.sub(as_name, markdown)


def _commands() -> str:
    import typer.main
    from typer.cli import get_docs_for_click

    from segserve.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="segserve")
    text = get_docs_for_click(obj=command, ctx=context, name="segserve")
    return text.partition("\n")[2].replace("\n## ", "\n### ")


def _errors() -> str:
    rows = ["| status | code | meaning |", "|---|---|---|"]
    for kind in sorted(error_classes(), key=lambda kind: (kind.status, kind.code)):
        meaning = " ".join((kind.__doc__ or "").split())
        rows.append(f"| {kind.status} | `{kind.code}` | {meaning} |")
    return "\n".join(rows)


_GENERATED = {"reference/commands.md": _commands, "reference/errors.md": _errors}
