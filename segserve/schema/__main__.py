"""`python -m segserve.schema [FOLDER]` writes the documents of the contract into `docs/`."""

import sys
from pathlib import Path

import orjson

from ..runtime.files import write_whole
from .openapi import openapi, response_schema

DOCUMENTS = {"openapi.json": openapi, "response.schema.json": response_schema}


def document_text(name: str) -> str:
    """The text of one of `DOCUMENTS`."""
    return orjson.dumps(
        DOCUMENTS[name](), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    ).decode("utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for name in DOCUMENTS:
        write_whole(folder / name, document_text(name))
