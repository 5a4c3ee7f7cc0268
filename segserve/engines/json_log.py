"""The log: one JSON object per line on stdout, of the gateway, its workers and TorchServe."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import orjson

_POLL_S = 0.2
_LONGEST_FILE_BYTES = 8 * 2**20
_LONGEST_LINE_BYTES = 2**16
_TORCHSERVE_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ \[(\w+) *\] (.+?) (\S+) - (.*)$")
_WORKER_LINE = "MODEL_LOG"  # logger of a worker's output


class JsonLines(logging.Formatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, and the extra `fields`, a mapping."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(
            {name: _as_utf8(value) for name, value in line.items()}, default=str
        ).decode()


def _as_utf8(value: object) -> object:
    """Escapes surrogates, which JSON cannot contain: bytes of headers that are not UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def log_to(stream: TextIO, level: int = logging.INFO) -> None:
    """Logs everything from this level on to a stream, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


@contextmanager
def following(path: Path) -> Iterator[None]:
    """Logs the lines that are appended (O_APPEND) to TorchServe's log, and truncates that file."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, ended), name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(path: Path, ended: threading.Event) -> None:
    offset, rest, is_last = 0, b"", False
    while not is_last:
        is_last = ended.wait(_POLL_S)
        new, offset = _read_from(path, offset)
        *lines, rest = (rest + new).split(b"\n")
        if len(rest) > _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            log_line(line.decode("utf-8", errors="replace"))


def _read_from(path: Path, offset: int) -> tuple[bytes, int]:
    """What follows the offset in the file, and the offset of what will be appended next."""
    try:
        with path.open("r+b") as file:
            file.seek(offset)
            new = file.read()
            if offset + len(new) > _LONGEST_FILE_BYTES:
                file.truncate(0)
                return new, 0
    except FileNotFoundError:
        return b"", offset
    return new, offset + len(new)


def log_line(line: str) -> None:
    """Logs a line of TorchServe at its own level, those of workers as `torchserve.worker`."""
    match = _TORCHSERVE_LINE.match(line)
    level, thread, logger, message = match.groups() if match else ("INFO", "", "", line)
    if not message.strip():
        return
    name = "torchserve.worker" if logger == _WORKER_LINE else "torchserve"
    number = logging.getLevelNamesMapping().get(level, logging.INFO)
    fields = {"thread": thread} if thread else {}
    logging.getLogger(name).log(number, "%s", message, extra={"fields": fields})
