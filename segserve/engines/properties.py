"""Java properties files: what TorchServe reads its settings from."""

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import ServerError

_NAMED_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def read_properties(path: Path) -> dict[str, str]:
    """Read a properties file into a mapping.

    Raises:
        ServerError: the file cannot be read, or a line is not `key=value`.
    """
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise ServerError(f"cannot read the settings {path}: {error.strerror}") from error
    properties = {}
    for number, line in _logical_lines(text):
        key, separator, value = line.partition("=")
        if not separator:
            raise ServerError(f"{path}, line {number}: expected key=value, got {line!r}")
        properties[key.strip()] = _unescape(value.strip())
    return properties


def write_properties(properties: Mapping[str, str], path: Path) -> None:
    """Write a mapping as a properties file, sorted by key, whatever characters the values hold."""
    path.write_text(
        "".join(f"{key}={_escape(properties[key])}\n" for key in sorted(properties)),
        encoding="ascii",
    )


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each setting: no comments, no blanks, continued lines
    joined.
    """
    start, pending = 0, ""
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not pending and (not line or line[0] in "#!"):
            continue
        start = start if pending else number
        if re.search(r"(?<!\\)(\\\\)*\\$", line):
            pending += line[:-1]
            continue
        yield start, pending + line
        pending = ""
    if pending:
        yield start, pending


def _unescape(value: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _NAMED_ESCAPES.get(code, code)

    units = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", replace, value)
    return units.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


def _escape(value: str) -> str:
    escaped = value.replace("\\", "\\\\")
    for letter, character in _NAMED_ESCAPES.items():
        escaped = escaped.replace(character, f"\\{letter}")
    escaped = re.sub(
        r"^ | $", r"\\u0020", escaped
    )  # Java drops the first, people's editors the last
    data = escaped.encode("utf-16-be", "surrogatepass")
    units = struct.unpack(f">{len(data) // 2}H", data)
    return "".join(chr(unit) if 32 <= unit < 127 else f"\\u{unit:04x}" for unit in units)
