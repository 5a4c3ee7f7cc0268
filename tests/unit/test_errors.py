"""Every error of HTTP: one hierarchy in one module, and the same statuses and codes in code and
documents.
"""

import ast
import re
from collections import defaultdict

from segserve import engines as frontend
from segserve.gateway.openapi import openapi
from segserve.runtime.errors import SegserveError, error_classes

from ..conftest import PROJECT

ERRORS_FILE = PROJECT / "segserve" / "runtime" / "errors.py"
CODES = {kind.code for kind in error_classes()}
TORCHSERVES = {
    frontend.BadTokenError().status,
    frontend.unknown_model("x").status,
    frontend.unknown_version("x", "1").status,
}
OUTSIDE_OPERATIONS = frontend.unknown_method().status  # OpenAPI lists the methods, not the others

Table = dict[int, set[str]]


def in_code() -> Table:
    table: Table = defaultdict(set)
    for kind in error_classes():
        table[kind.status].add(kind.code)
    return table | {status: table[status] for status in TORCHSERVES}


def in_openapi() -> Table:
    document = openapi()
    responses = document["components"]["responses"]
    return {
        int(status): set(re.findall(r"\w+", responses[status]["description"])) & CODES
        for status in document["paths"]["/predictions/{model}"]["post"]["responses"]
        if status != "200"
    }


def in_the_api_page() -> Table:
    section = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8").partition("## Errors")[2]
    table: Table = defaultdict(set)
    for status, codes in re.findall(r"^\| (\d{3}) \| (.*?) ?\|", section, re.MULTILINE):
        table[int(status)] |= set(re.findall(r"`(\w+)`", codes))
    return table


def test_every_status_and_code_is_the_same_in_code_openapi_and_api_page():
    assert in_openapi() == in_code()
    assert in_the_api_page() == {**in_code(), OUTSIDE_OPERATIONS: set()}


def test_other_documents_give_every_code_its_status():
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((PROJECT / "docs").glob("*.md"))
    )
    named = {(int(status), code) for status, code in re.findall(r"`(\d{3}) ([a-z_]+)`", text)}
    assert named
    assert named <= {(kind.status, kind.code) for kind in error_classes()}


def test_errors_of_http_are_defined_in_one_module():
    """By the names of base classes: importing every module would take Ray and Gradio."""
    defined = [
        (path, node.name, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for path in (PROJECT / "segserve").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    of_http = {SegserveError.__name__}
    while more := {name for _, name, bases in defined if bases & of_http} - of_http:
        of_http |= more
    assert of_http == {kind.__name__ for kind in error_classes()}
    assert {path for path, name, _ in defined if name in of_http} == {ERRORS_FILE}
