"""The log: one JSON object per line on stdout, from this process and from TorchServe."""

import logging
import re
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

import orjson

_FIELDS = "fields"
_POLL_S = 0.2
_LONGEST_FILE_BYTES = 8 * 2**20
_LONGEST_LINE_BYTES = 2**16
_TORCHSERVE_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ \[(\w+) *\] (.+?) (\S+) - (.*)$")
_WORKER_LINE = "MODEL_LOG"  # logger of a worker's output


class JsonLines(logging.Formatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, and the extra `fields`, a mapping."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record as one line, whatever the message contains."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(
            {name: _as_utf8(value) for name, value in line.items()}, default=str
        ).decode()


def _as_utf8(value: object) -> object:
    """Escapes surrogates, which JSON cannot contain: bytes of headers that are not UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def log_to(stream: TextIO = sys.stdout) -> None:
    """Logs everything from INFO on to a stream, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class LogFollower:
    """Logs the lines that are appended to TorchServe's log, and keeps that file small.

    TorchServe must append to the file (O_APPEND), because this class truncates it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        self._offset = 0
        self._rest = b""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            with self._path.open("r+b") as file:
                file.seek(self._offset)
                new = file.read()
                self._offset += len(new)
                if self._offset > _LONGEST_FILE_BYTES:
                    file.truncate(0)
                    self._offset = 0
        except FileNotFoundError:
            return
        *lines, self._rest = (self._rest + new).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            log_line(line.decode("utf-8", errors="replace"))


def log_line(line: str) -> None:
    """Logs a line of TorchServe at its own level, those of workers as `torchserve.worker`."""
    match = _TORCHSERVE_LINE.match(line)
    level, thread, logger, message = match.groups() if match else ("INFO", "", "", line)
    if not message.strip():
        return
    name = "torchserve.worker" if logger == _WORKER_LINE else "torchserve"
    number = logging.getLevelNamesMapping().get(level, logging.INFO)
    logging.getLogger(name).log(
        number, "%s", message, extra={_FIELDS: {"thread": thread} if thread else {}}
    )
