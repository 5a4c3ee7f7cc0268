"""The checks of `segserve doctor`. Each looks at one thing and changes nothing."""

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from ..resources import fetched_models
from ..runtime.cores import available_cores
from . import Finding, Level

if TYPE_CHECKING:
    import requests

    from ..gateway.background import Endpoint, Server

BUILD_DIR = Path("build")
_MANIFEST = "MAR-INF/MANIFEST.json"
_LOW_DISK_BYTES = 2 * 10**9  # an archive of a large model may not fit
_TORCH_TIMEOUT_S, _HTTP_TIMEOUT_S = 120, 10

_INSTALL = "install the project's versions: pip install 'segserve[serve]', or make setup"
_INSTALL_ONNX = "install the project's versions: pip install 'segserve[onnx]'"


def check_python() -> Finding:
    return Finding("Python", Level.OK, f"{platform.python_version()} ({sys.executable})")


def _is_onnx_only() -> bool:
    """Whether this is an installation of `segserve[onnx]`, a server without PyTorch."""
    return find_spec("torch") is None and find_spec("openvino") is not None


def _not_needed(subject: str) -> Finding:
    reason = "not needed: the engine local and the runtime onnx work without it"
    return Finding(subject, Level.OK, reason)


def check_packages() -> Finding:
    wrong = [fault for requirement in _requirements() if (fault := _fault(requirement))]
    if wrong:
        remedy = _INSTALL_ONNX if _is_onnx_only() else _INSTALL
        return Finding("packages", Level.PROBLEM, "; ".join(wrong), remedy)
    return Finding("packages", Level.OK, "all there that a server needs")


def _requirements() -> Iterator[str]:
    extras = ("onnx" if _is_onnx_only() else "serve", "gateway")
    for line in metadata.requires("segserve") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra *== *[\"']([\w-]+)", marker)
        if not marker or (extra and extra[1] in extras):
            yield requirement.strip()


def _fault(requirement: str) -> str:
    """What is wrong with an installed package, against `NAME>=VERSION` or `NAME==VERSION`;
    or nothing.
    """
    name, operator, wanted = re.fullmatch(
        r"([\w.-]+)(?:\[.*?\])?\s*(>=|==)?\s*([\w.]*).*", requirement
    ).groups()  # type: ignore[union-attr]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    old = operator == ">=" and _numbers(version) < _numbers(wanted)
    other = operator == "==" and version.partition("+")[0] != wanted
    return f"{name} is {version}, needed is {operator}{wanted}" if old or other else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def check_java() -> Finding:
    from ..engines import ServerError
    from ..engines.torchserve_process import find_java

    if _is_onnx_only():
        return _not_needed("Java")
    try:
        return Finding("Java", Level.OK, f"works, in {find_java()}")
    except ServerError as error:  # it says what to install
        return Finding("Java", Level.PROBLEM, str(error))


@dataclass(frozen=True)
class TorchFacts:
    """`cuda_build` is the CUDA version that torch was built for; None for a build without it."""

    torch: str
    torchvision: str
    threads: int
    bf16: bool
    cuda_build: str | None
    gpu: str | None


class TorchBrokenError(Exception):
    """torch or torchvision cannot be imported. The message is the reason in one line."""


def read_torch_facts() -> TorchFacts:
    """The facts of the installed torch, from a separate process: a broken torch may end the process
    that imports it. Raises TorchBrokenError if there is none, or it does not work.
    """
    code = f"from {__name__} import print_torch_facts; print_torch_facts()"
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TorchBrokenError(f"importing it takes more than {_TORCH_TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TorchBrokenError(
            said[-1][:300] if said else f"importing it ends Python with status {done.returncode}"
        )
    return TorchFacts(**json.loads(done.stdout.splitlines()[-1]))


def print_torch_facts() -> None:
    """Imports torch and prints its `TorchFacts` as JSON."""
    import torch
    import torchvision

    from ..runtime.inference.segmenter import has_bf16

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    facts = TorchFacts(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        threads=torch.get_num_threads(),
        bf16=has_bf16(torch.device("cuda" if gpu else "cpu")),
        cuda_build=torch.version.cuda,
        gpu=gpu,
    )
    print(json.dumps(asdict(facts)))  # noqa: T201 - what `read_torch_facts` reads


_torch_facts = cache(read_torch_facts)


def check_torch() -> Finding:
    if _is_onnx_only():
        return _not_needed("torch")
    try:
        facts = _torch_facts()
    except TorchBrokenError as error:
        return Finding("torch", Level.PROBLEM, f"does not load ({error})", _INSTALL)
    precision = "bf16" if facts.bf16 else "float32, as bf16 is not native here"
    message = (
        f"{facts.torch} with torchvision {facts.torchvision}, {facts.threads} threads, "
        f"computes in {precision}"
    )
    if facts.threads > (cores := available_cores()):
        message += f", but this process may use {cores} cores"
        return Finding("torch", Level.WARNING, message, f"set OMP_NUM_THREADS to {cores}")
    return Finding("torch", Level.OK, message)


def check_gpu() -> Finding:
    if _is_onnx_only():
        return _not_needed("GPU")
    try:
        facts = _torch_facts()
    except TorchBrokenError:
        return Finding("GPU", Level.WARNING, "not known, as torch does not load", "see torch")
    if facts.gpu:
        return Finding("GPU", Level.OK, f"{facts.gpu}, through CUDA {facts.cuda_build}")
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return Finding("GPU", Level.OK, "none; models run on the processor")
    message = f"an NVIDIA driver is here, but torch, built for CUDA {facts.cuda_build}, sees no GPU"
    remedy = "install a torch for the CUDA version that `nvidia-smi` shows (pytorch.org says how)"
    if facts.cuda_build is None:
        message = "an NVIDIA driver is here, but torch is built without CUDA"
    else:
        remedy += ", or look at CUDA_VISIBLE_DEVICES"
    return Finding("GPU", Level.WARNING, message, remedy)


def check_disk() -> Finding:
    folders = {
        "archives, here": Path(),
        "unpacked models": Path(tempfile.gettempdir()),
        "fetched models": fetched_models(),
    }
    free_bytes = {name: shutil.disk_usage(_existing(path)).free for name, path in folders.items()}
    name, least_bytes = min(free_bytes.items(), key=lambda item: item[1])
    message = f"{least_bytes / 1e9:.1f} GB free for {name}"
    if least_bytes < _LOW_DISK_BYTES:
        return Finding("disk", Level.WARNING, message, "make room: large models may not fit")
    return Finding("disk", Level.OK, message)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def check_archives(folder: Path = BUILD_DIR) -> Finding:
    archives = sorted(folder.glob("*.mar"))
    if not archives:
        message = f"none in {folder}/ yet; `segserve archive` and `segserve serve` make one"
        return Finding("archive", Level.OK, message)
    faults = [f"{path}: {fault}" for path in archives if (fault := archive_fault(path))]
    if faults:
        message, remedy = "; ".join(faults), "pack it again with `segserve archive`"
        return Finding("archive", Level.PROBLEM, message, remedy)
    names = ", ".join(str(path) for path in archives)
    return Finding("archive", Level.OK, f"{names}: whole, the weights are those of the record")


def archive_fault(path: Path) -> str:
    """What is wrong with an archive, or nothing. All of it is read, and the weights are compared
    with the record.
    """
    import yaml

    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                return f"{damaged} in it is damaged"
            named = json.loads(archive.read(_MANIFEST))["model"]["serializedFile"]
            weights = yaml.safe_load(archive.read("model.yaml"))["weights"]
            with archive.open(named) as member:
                digest = hashlib.file_digest(cast(zipfile.ZipExtFile, member), "sha256").hexdigest()
    except Exception as error:  # any part of it may be missing or damaged
        return f"is no whole archive of this project ({' '.join(str(error).split())[:120]})"
    if digest != weights["sha256"]:
        return f"SHA-256 of {named} is {digest}, its record says {weights['sha256']}"
    return ""


def check_ports() -> Finding:
    """Whether a server would get its ports, except those of the server that runs here."""
    from ..engines.config import configured_address, read_config
    from ..gateway.background import running_server

    settings, server = read_config(), running_server()
    own = (server.inference_url, server.metrics_url) if server else ()
    own_ports = {urlsplit(url).port for url in own}
    wanted = [configured_address(settings, f"{name}_address") for name in ("inference", "metrics")]
    taken = [
        str(port) for host, port in wanted if port not in own_ports and not _is_free(host, port)
    ]
    if taken:
        remedy = "`segserve serve` takes free ones instead; SEGSERVE_PORT and the like name others"
        message = f"taken by another program: {', '.join(taken)}"
        return Finding("ports", Level.WARNING, message, remedy)
    listed = ", ".join(str(port) for _, port in wanted)
    used = ", or used by the server that runs here" if own else ""
    return Finding("ports", Level.OK, f"{listed}: free{used}")


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port)):  # as TorchServe: closed connections do not count
            return True
    except OSError:
        return False


def check_server(url: str | None, token: str | None) -> Finding:
    """Whether the server of this folder is ready, or another one responds to `/ping`."""
    from ..gateway.background import URL_VARIABLE, find_endpoint

    endpoint = find_endpoint(url, token=token)
    if endpoint.running is not None:
        return _own_server(endpoint.running)
    response = _get(endpoint, "ping")
    if response is None:
        is_named = url or os.environ.get(URL_VARIABLE, "").strip()
        level = Level.PROBLEM if is_named else Level.OK
        remedy = "`segserve serve` starts one on this machine"
        return Finding("server", level, f"no server responds at {endpoint.url}", remedy)
    if response.ok or _rejects_token(response):
        return Finding("server", Level.OK, f"{endpoint.url} responds")
    return Finding(
        "server",
        Level.PROBLEM,
        f"{endpoint.url}/ping returns {response.status_code} {response.reason}",
        "look whether it is the inference port of a server, and into its log",
    )


def _own_server(server: "Server") -> Finding:
    from ..engines import ServerError

    where = f"{server.inference_url} with {', '.join(server.models)}"
    try:
        server.wait_ready(timeout_s=0)
    except ServerError as error:
        remedy = f"wait, if it has just been started; else read {server.log_path}"
        message = f"{where}: {str(error).partition('; the log is')[0]}"
        return Finding("server", Level.PROBLEM, message, remedy)
    return Finding("server", Level.OK, f"{where}: a worker is READY")


def check_token(url: str | None, token: str | None) -> Finding:
    """Whether the server accepts the token: `/ping` needs none, the list of models does."""
    from ..gateway.background import TOKEN_VARIABLE, find_endpoint

    endpoint = find_endpoint(url, token=token)
    response = _get(endpoint, "models")
    if response is None:
        return Finding("token", Level.OK, "not checked, because no server responds")
    if not _rejects_token(response):
        return Finding("token", Level.OK, "valid" if endpoint.token else "none is needed")
    remedy = f"name it with --token or in {TOKEN_VARIABLE}; `segserve serve` makes a new one"
    fault = "is wrong or has expired" if endpoint.token else "is needed, and none was given"
    # Else it may be anyone's server that listens there.
    is_meant = url or endpoint.running or endpoint.token
    level = Level.PROBLEM if is_meant else Level.WARNING
    return Finding("token", level, f"that of {endpoint.url} {fault}", remedy)


def _get(endpoint: "Endpoint", path: str) -> "requests.Response | None":
    import requests

    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    no_proxy = {"no_proxy": "*"} if endpoint.running else None  # for our own server
    address = f"{endpoint.url.rstrip('/')}/{path}"
    try:
        return requests.get(address, headers=headers, timeout=_HTTP_TIMEOUT_S, proxies=no_proxy)
    except requests.RequestException:
        return None


def _rejects_token(response: "requests.Response") -> bool:
    """The gateway and TorchServe return 400, a proxy 401 or 403."""
    return response.status_code in (401, 403) or (
        response.status_code == 400 and "InvalidKeyException" in response.text
    )
