"""Reports words that this project does not use, with the term to use instead: `make lint` runs it.

python -m tests.vocabulary [FILE...]
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
WIRE_NAMES = re.compile(
    r"segserve_answer_bytes_total|answer_too_large|= \"refused\"|, \"refused\"\)|Connection refused"
)
EXEMPT = ("CHANGELOG.md", "LICENSE", "tests/vocabulary.py")
"""The record of old names, the licence, and this list."""

TERMS = {
    r"doors?": "gateway",
    r"rivals?|contestants?": "peer",
    r"whoever|whatever (?:is|was) \w+ed": "name the subject",
    r"nobody": "name the subject",
    r"anew": "again",
    r"side by side|side_by_side": "parallel",
    r"stand(?:s|ing)? in(?! line| the)|stand-ins?": "replaces",
    r"what holds it": "what limits it",
    r"refus(?:e|es|ed|ing|als?)": "reject, error response",
    r"answer(?:s|ed|ing)?": "response, respond",
    r"ask(?:s|ed|ing)?": "request",
    r"told|tells?": "report, record, return",
    r"in 8 bits|in_8_bits": "int8",
    r"under way": "pending, in flight",
    r"lanes?": "stream",
    r"of its own accord|as it were": "say it directly",
}
PATTERN = re.compile(
    "|".join(rf"(?P<t{i}>(?<![\w.-])(?:{words})(?![\w-]))" for i, words in enumerate(TERMS)), re.I
)


def hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word and term of every match. Underscores separate words in identifiers."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in PATTERN.finditer(WIRE_NAMES.sub("", line).replace("_", " ")):
            index = int((match.lastgroup or "t0")[1:])
            yield number, match[0], list(TERMS.values())[index]


def main(arguments: list[str]) -> int:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    names = arguments or listed.stdout.splitlines()
    found = 0
    for name in names:
        path = PROJECT / name
        if name.startswith(EXEMPT) or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:  # a picture, or weights
            continue
        for number, word, term in hits(content.decode()):
            print(f"{name}:{number}: {word!r}: write {term}")  # noqa: T201
            found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
