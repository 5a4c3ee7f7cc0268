"""Places and whole files, on the disk and in a store that is none: fsspec's own in memory."""

import http.server
import threading

import pytest

from segserve.batch.storage import Storage, place_of, read_bytes, told_by_location
from segserve.segment.errors import SegmentError


@pytest.fixture(params=["disk", "memory"])
def storage(request, tmp_path):
    location = (
        str(tmp_path / "out") if request.param == "disk" else f"memory://bucket-{tmp_path.name}/out"
    )
    return Storage.at(location)


def test_storage_gives_back_what_was_written(storage):
    storage.write("labels/a/b.png", b"content")
    assert storage.read("labels/a/b.png") == b"content"
    assert read_bytes(storage.location("labels/a/b.png")) == b"content"
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
        storage.delete_folder("labels")
        storage.delete("labels/a.png")
    assert not storage.exists("labels/a.png")


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///data/a%20b.jpg", "/data/a b.jpg"),
        ("/data/../x", "/x"),
        ("/data/a%20b.jpg", "/data/a%20b.jpg"),
    ],
    ids=["file URI", "dots", "percent in a path"],
)
def test_place_of_local_locations_is_an_absolute_path(location, path):
    place = place_of(location)
    assert (place.is_local, place.path, place.location_of("/x/y")) == (True, path, "/x/y")


def test_place_of_uri_keeps_what_it_says_about_the_store():
    place = place_of("s3://bucket/a b/c?.jpg?region=eu-west-1")
    assert place.path == "bucket/a b/c?.jpg"
    assert place.location_of("bucket/other") == "s3://bucket/other?region=eu-west-1"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "s3://key:secret@bucket/a",
            "credentials within a URI would end up in the table; set AWS_ACCESS_KEY_ID",
        ),
        ("nostore://bucket/a", "nostore://: no such store is known"),
    ],
    ids=["credentials", "unknown store"],
)
def test_place_of_uri_that_cannot_be_read_is_refused(location, message):
    with pytest.raises(SegmentError, match=message):
        place_of(location)


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
    """The URI of a bucket in a store that refuses everyone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Forbidden) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        yield f"s3://bucket/images?region=us-east-1&scheme=http&endpoint_override={host}"
        server.shutdown()


def test_place_in_a_bucket_without_credentials_says_which_are_missing(forbidden_bucket):
    with (
        pytest.raises(
            SegmentError, match=r"are credentials missing\? Set AWS_ACCESS_KEY_ID"
        ) as refused,
        told_by_location(forbidden_bucket),
    ):
        place_of(forbidden_bucket).is_folder()
    assert "\n" not in str(refused.value)
