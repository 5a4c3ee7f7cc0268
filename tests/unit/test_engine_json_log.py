"""The log of the container: every line is a JSON object, by whatever process."""

import io
import json
import logging

import pytest

from segserve.engines import json_log as json_lines
from segserve.engines.json_log import following, log_line, log_to


@pytest.fixture
def lines():
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log_to(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.basicConfig(handlers=handlers, level=level, force=True)


def test_log_with_fields_and_odd_text_is_one_object_a_line(lines):
    logging.getLogger("here").warning(
        'two\nlines, "quotes" and é', extra={"fields": {"status": 200}}
    )
    [line] = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "here",
        "message": 'two\nlines, "quotes" and é',
        "status": 200,
    }


def test_log_of_a_header_that_is_no_text_is_one_object_a_line(lines):
    sent = b"00-\xff-01".decode("utf-8", "surrogateescape")
    logging.getLogger("here").info("requested", extra={"fields": {"traceparent": sent}})
    [line] = lines()
    assert line["traceparent"] == "00-\\udcff-01"


def test_log_of_an_exception_holds_its_traceback(lines):
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("here").exception("a request failed")
    [line] = lines()
    assert line["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize(
    ("line", "logger", "level", "message"),
    [
        pytest.param(
            "2026-11-21T11:38:49,631 [WARN ] W-9000-net_1.0 org.pytorch.serve.wlm.WorkerThread - "
            "Retry worker: a - b",
            *("torchserve", "warning", "Retry worker: a - b"),
            id="front-end",
        ),
        pytest.param(
            "2026-11-21T11:38:49,631 [INFO ] W-9000-net_1.0-stdout MODEL_LOG - serving net on cpu",
            *("torchserve.worker", "info", "serving net on cpu"),
            id="worker",
        ),
        pytest.param(
            "Torchserve version: 0.12.0",
            "torchserve",
            "info",
            "Torchserve version: 0.12.0",
            id="bare",
        ),
    ],
)
def test_log_line_of_torchserve_keeps_level_and_message(lines, line, logger, level, message):
    log_line(line)
    [reported] = lines()
    assert (reported["logger"], reported["level"], reported["message"]) == (logger, level, message)


def test_blank_line_is_not_logged(lines):
    log_line("   ")
    assert lines() == []


def test_follower_reports_what_is_appended_whole_lines_only_and_all_at_its_end(lines, tmp_path):
    log = tmp_path / "server.log"
    with log.open("ab", buffering=0) as file, following(log):
        file.write(b"one\ntw")
        file.write(b"o\nthree\n")
    assert [line["message"] for line in lines()] == ["one", "two", "three"]


def test_follower_of_a_large_log_empties_the_file_and_loses_nothing(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_LONGEST_FILE_BYTES", 10)
    monkeypatch.setattr(json_lines, "_POLL_S", 0.01)
    log = tmp_path / "server.log"
    with log.open("ab", buffering=0) as file, following(log):
        for number in range(20):
            file.write(f"line {number}\n".encode())
            while len(lines()) <= number:
                pass
    assert [line["message"] for line in lines()] == [f"line {number}" for number in range(20)]
    assert log.stat().st_size <= 20
