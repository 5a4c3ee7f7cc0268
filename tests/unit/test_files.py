"""Files that appear under their names only when they are complete."""

import ast
import os

import pytest

from segserve.runtime.files import whole_file, write_whole

from ..conftest import PROJECT

# Moves a verified copy within one folder. Moves a folder.
_OTHER_NEEDS = {"engines/store.py", "importing/model.py"}


@pytest.mark.parametrize(
    ("content", "expected"), [("é\n", b"\xc3\xa9\n"), (b"\xff", b"\xff")], ids=["text", "bytes"]
)
def test_write_whole_writes_content_and_replaces_what_was_there(tmp_path, content, expected):
    path = tmp_path / "a"
    path.write_text("before")
    write_whole(path, content)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["a"]


def test_write_whole_of_a_secret_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "token"
    path.write_text("before")
    write_whole(path, "secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_write_whole_by_default_has_the_permissions_of_any_new_file(tmp_path):
    write_whole(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_write_whole_with_the_longest_name_writes_it(tmp_path):
    path = tmp_path / ("a" * 251 + ".png")
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"


def test_write_whole_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write_whole(tmp_path / "a.png", b"content")
    assert os.listdir(tmp_path) == ["a.png"]


def test_whole_file_that_fails_halfway_leaves_the_file_that_was_there(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def _write_half(path):
    with whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_whole_file_written_twice_at_once_is_that_which_ends_last(tmp_path):
    with whole_file(tmp_path / "a") as last, whole_file(tmp_path / "a") as first:
        last.write(b"last")
        first.write(b"first")
    assert (tmp_path / "a").read_bytes() == b"last"


def test_whole_file_keeps_its_temporary_file_in_the_given_folder(tmp_path):
    (tmp_path / "partial").mkdir()
    with whole_file(tmp_path / "a", folder=tmp_path / "partial"):
        assert os.listdir(tmp_path) == ["partial"]
        assert len(os.listdir(tmp_path / "partial")) == 1
    assert sorted(os.listdir(tmp_path)) == ["a", "partial"]
    assert os.listdir(tmp_path / "partial") == []


def test_files_are_replaced_in_one_module():
    package = PROJECT / "segserve"
    replacing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _moves_a_file(node)
    }
    assert replacing == {"runtime/files.py", *_OTHER_NEEDS}


def _moves_a_file(call: ast.Call) -> bool:
    """`os.replace(a, b)`, `path.replace(b)` or `path.rename(b)`; text is replaced with two
    arguments.
    """
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in (
        "replace",
        "rename",
        "renames",
        "move",
    ):
        return False
    is_module = isinstance(function.value, ast.Name) and function.value.id in ("os", "shutil")
    return len(call.args) == 1 + is_module and not call.keywords
