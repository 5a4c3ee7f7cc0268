"""What the page makes of a server's responses, over real sockets."""

import json

import pytest

from segserve.client import (
    AuthenticationError,
    ResponseError,
    TimedOutError,
    UnreachableError,
)
from segserve.page.server import PageServer, as_problem

from .canned import IMAGE_RGB, Canned, as_file, canned_server


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no server was left running
    with canned_server() as server:
        yield server


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "dog.png"
    path.write_bytes(as_file(IMAGE_RGB))
    return path


def rejection(status: int, code: str, message: str) -> Canned:
    return Canned(json.dumps({"error": {"code": code, "message": message}}).encode(), status=status)


def test_send_sends_the_file_as_it_is_with_its_options_and_token(server, picture):
    response = PageServer(server.url, "secret").send(
        picture, model="tiny", classes=["dog"], mode="slide", threshold=0.5
    )
    [received] = server.received
    assert response["stem"] == "dog"
    assert received.path == "/predictions/tiny"
    assert received.body == picture.read_bytes()
    assert received.headers["Authorization"] == "Bearer secret"
    assert received.headers["X-Segment-Classes"] == '["dog"]'
    assert (received.headers["X-Segment-Mode"], received.headers["X-Segment-Threshold"]) == (
        "slide",
        "0.5",
    )


def test_send_rejected_reports_the_problem_with_the_servers_message(server, picture):
    server.response = rejection(422, "image_truncated", "the PNG ends after 12 of 64 rows")
    problem = PageServer(server.url).send(picture)
    assert problem["title"] == "The server cannot segment this picture"
    assert problem["detail"].endswith("The PNG ends after 12 of 64 rows.")


def test_send_without_a_server_says_how_to_start_one(server, picture):
    server.server_close()
    problem = PageServer(server.url).send(picture)
    assert problem["title"] == "No server responds"
    assert "`segserve serve`" in problem["detail"]


def test_send_of_a_picture_that_was_deleted_requests_it_again(server, picture):
    picture.unlink()
    assert PageServer(server.url).send(picture)["title"] == "The picture is no longer here"
    assert server.received == []


def test_send_with_address_that_is_none_is_reported(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "got '127.0.0.1:8080'" in PageServer("127.0.0.1:8080").send(picture)["detail"]


def test_send_with_token_file_that_is_missing_is_reported(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGSERVE_TOKEN", raising=False)
    monkeypatch.setenv("SEGSERVE_TOKEN_FILE", str(tmp_path / "none"))
    detail = PageServer("http://127.0.0.1:9").send(picture)["detail"]
    assert detail == "Cannot read the file of $SEGSERVE_TOKEN_FILE: No such file or directory."


def test_server_keeps_its_token_out_of_its_text():
    assert "secret" not in repr(PageServer("http://127.0.0.1:1", "secret"))


def test_catalogue_of_a_server_elsewhere_has_the_model_that_was_named(server):
    assert PageServer(server.url).catalogue("mine").models == ("mine",)


@pytest.mark.parametrize(
    ("error", "title"),
    [
        pytest.param(UnreachableError("x"), "No server responds", id="unreachable"),
        pytest.param(TimedOutError("x"), "This did not work", id="timed-out"),
        pytest.param(
            AuthenticationError(400, "InvalidKeyException", "x"),
            "The server rejects the token",
            id="token",
        ),
        pytest.param(
            ResponseError(413, "image_too_large", "x"),
            "The server cannot segment this picture",
            id="rejected",
        ),
        pytest.param(PermissionError(13, "Permission denied"), "This did not work", id="file"),
    ],
)
def test_in_plain_words_has_a_title_for_each_error(error, title):
    assert as_problem(error)["title"] == title


def test_in_plain_words_names_no_path_of_this_machine():
    assert (
        "/secret"
        not in as_problem(PermissionError(13, "Permission denied", "/secret/cat.png"))["detail"]
    )
