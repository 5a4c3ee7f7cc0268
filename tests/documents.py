"""The blocks of code that the documents show."""

import re

from tests.conftest import PROJECT


def blocks(document: str, language: str) -> list[str]:
    """Those of a document of the project in that language, in their order."""
    text = (PROJECT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
