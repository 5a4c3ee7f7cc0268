"""docs/security.md names tests, commands and files that exist."""

import re

import pytest

from tests.conftest import PROJECT

PAGE = (PROJECT / "docs" / "security.md").read_text(encoding="utf-8")


def test_security_page_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("test_*.py")
    )
    assert len(named) > 20
    assert sorted(name for name in named if f"def {name}(" not in sources) == []


def test_security_page_has_a_test_for_every_threat():
    threats = PAGE.partition("## Threats")[2].partition("###")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if "`test_" not in row.rpartition(" | ")[2]] == []


@pytest.mark.parametrize("page", ["docs/security.md", "SECURITY.md"])
def test_security_pages_link_to_what_is_there(page):
    path = PROJECT / page
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert [link for link in missing if link != "hostile-input.md"] == []


def test_security_page_s_make_targets_are_there():
    targets = re.findall(
        r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= set(targets)
