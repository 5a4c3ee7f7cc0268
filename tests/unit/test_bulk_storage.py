"""Files on the disk and in a store, which is fsspec's store in memory."""

import http.server
import threading
from dataclasses import replace

import pytest

from segserve.bulk.storage import BulkError, Storage, absolute, errors_with_location


@pytest.fixture(params=["disk", "memory"])
def storage(request, tmp_path):
    location = (
        str(tmp_path / "out") if request.param == "disk" else f"memory://bucket-{tmp_path.name}/out"
    )
    return Storage.at(location)


def test_storage_reads_what_was_written(storage):
    storage.write("labels/a/b.png", b"content")
    assert storage.read("labels/a/b.png") == b"content"
    assert Storage.at(storage.location("labels/a/b.png")).read_bytes() == b"content"
    assert storage.names("labels/a") == ["b.png"]
    assert storage.exists("labels")


def test_storage_of_a_missing_file_reads_none(storage):
    assert storage.read("absent") is None
    assert storage.names("absent") == []
    assert not storage.exists("absent")


def test_storage_writer_that_fails_leaves_no_file(storage):
    storage.write("kept.txt", b"before")
    with pytest.raises(RuntimeError, match="halfway"):
        _write_half(storage)
    assert not storage.exists("new.txt")
    assert storage.read("kept.txt") == b"before"


def _write_half(storage):
    with storage.writer("new.txt") as file:
        file.write(b"half")
        raise RuntimeError("halfway")


def test_storage_on_disk_writes_nothing_half_under_its_name(tmp_path):
    storage = Storage.at(str(tmp_path))
    with storage.writer("a.png") as file:
        file.write(b"half")
        assert storage.read("a.png") is None
    assert storage.read("a.png") == b"half"
    storage.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_storage_deletes_folders_and_files_that_may_be_missing(storage):
    storage.write("labels/a.png", b"a")
    for _ in range(2):
        storage.delete("labels/a.png")
        storage.delete("labels")
    assert not storage.exists("labels/a.png")


def test_absolute_keeps_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("s3://bucket/a/../b") == "s3://bucket/a/../b"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///data/a%20b.jpg", "/data/a b.jpg"),
        ("/data/", "/data"),
        ("/data/a%20b.jpg", "/data/a%20b.jpg"),
    ],
    ids=["file URI", "folder", "percent in a path"],
)
def test_storage_at_a_local_location_has_its_path(location, path):
    storage = Storage.at(location)
    assert (storage.is_local, storage.path) == (True, path)
    assert replace(storage, path="/x/y").location("") == "/x/y"


def test_storage_at_a_uri_keeps_the_options_of_the_store():
    storage = Storage.at("s3://bucket/a b/c?.jpg?region=eu-west-1")
    assert storage.path == "bucket/a b/c?.jpg"
    assert (
        replace(storage, path="bucket/other").location("") == "s3://bucket/other?region=eu-west-1"
    )


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "s3://key:secret@bucket/a",
            "s3://: credentials within a URI would be written to the table",
        ),
        ("nostore://bucket/a", "nostore://bucket: Protocol not known: nostore"),
    ],
    ids=["credentials", "unknown store"],
)
def test_storage_at_an_unusable_uri_raises(location, message):
    with pytest.raises(BulkError, match=message):
        Storage.at(location)


class _Forbidden(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"  # noqa: E501
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def forbidden_bucket(monkeypatch):
    """The URI of a bucket in a store that rejects every request."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Forbidden) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        yield f"s3://bucket/images?region=us-east-1&scheme=http&endpoint_override={host}"
        server.shutdown()


def test_storage_in_a_bucket_without_credentials_raises_one_line(forbidden_bucket):
    with (
        pytest.raises(BulkError, match=r"^s3://bucket.*(ACCESS_DENIED|403)") as caught,
        errors_with_location(forbidden_bucket),
    ):
        Storage.at(forbidden_bucket).is_folder()
    assert "\n" not in str(caught.value)
