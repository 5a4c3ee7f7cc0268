"""The server and what it serves: ports, archives, health, token."""

import hashlib
import json
import socket
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from . import Finding, ok, problem, warning

if TYPE_CHECKING:
    import requests

    from ..gateway.background import Endpoint, Server

BUILD_DIR = Path("build")
MANIFEST = "MAR-INF/MANIFEST.json"

_HTTP_TIMEOUT_S = 10
_START_ONE = "`segserve serve` starts one"


def check_ports() -> Finding:
    """Whether a server would get the ports of its settings; those of the server that runs here are
    its own.
    """
    from ..gateway.background import running_server

    return judge_ports(_wanted_ports(), own=_own_ports(running_server()))


def judge_ports(wanted: Iterable[tuple[str, int]], *, own: set[int]) -> Finding:
    ports = {port: host for host, port in wanted}
    taken = [port for port, host in ports.items() if port not in own and not _is_free(host, port)]
    listed = ", ".join(map(str, ports))
    if taken:
        names = ", ".join(f"{port}{_owner(port)}" for port in taken)
        remedy = "`segserve serve` takes free ones instead; SEGSERVE_PORT and the like name others"
        return warning("ports", f"taken by another program: {names}", remedy)
    used = ", or used by the server that runs here" if own else ""
    return ok("ports", f"{listed}: free{used}")


def check_archives(folder: Path = BUILD_DIR) -> Finding:
    archives = sorted(folder.glob("*.mar"))
    if not archives:
        message = f"none in {folder}/ yet; `segserve archive` and `segserve serve` make one"
        return ok("archive", message)
    faults = [f"{path}: {fault}" for path in archives if (fault := archive_fault(path))]
    if faults:
        return problem("archive", "; ".join(faults), "pack it again with `segserve archive`")
    names = ", ".join(str(path) for path in archives)
    return ok("archive", f"{names}: whole, the weights are those of the record")


def archive_fault(path: Path) -> str:
    """What is wrong with an archive, or nothing: all of it is read, and the weights compared with
    the record.
    """
    import yaml

    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                return f"{damaged} in it is damaged"
            named = json.loads(archive.read(MANIFEST))["model"]["serializedFile"]
            weights = yaml.safe_load(archive.read("model.yaml"))["weights"]
            with archive.open(named) as member:
                digest = hashlib.file_digest(cast(zipfile.ZipExtFile, member), "sha256").hexdigest()
    except zipfile.BadZipFile:
        return "is no archive, or was cut short"
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        return f"lacks what an archive of this project holds ({' '.join(str(error).split())[:120]})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest != weights["sha256"]:
        return f"SHA-256 of {named} is {digest}, its record says {weights['sha256']}"
    return ""


def check_server(url: str | None, token: str | None) -> Finding:
    """Whether the server of this folder is ready, or another one responds to `/ping`."""
    from ..gateway.background import find_endpoint

    endpoint = find_endpoint(url, token=token)
    if endpoint.running is not None:
        return _own_server(endpoint.running)
    response = _get(endpoint, "ping")
    if response is None and url is None:
        return ok("server", f"none runs here; {_START_ONE}")
    if response is None:
        remedy = f"check address and firewall; on this machine {_START_ONE}"
        return problem("server", f"no server responds at {endpoint.url}", remedy)
    if response.ok:
        return ok("server", f"{endpoint.url} responds {_status(response)}")
    if _rejects_token(response):
        return ok("server", f"{endpoint.url} responds, and needs a token")
    return problem(
        "server",
        f"{endpoint.url}/ping returns {response.status_code} {response.reason}",
        "look whether it is the inference port of a TorchServe, and into its log",
    )


def check_token(url: str | None, token: str | None) -> Finding:
    """Whether the server accepts the token: `/ping` needs none, the list of models does."""
    from ..gateway.background import TOKEN_VARIABLE, find_endpoint

    endpoint = find_endpoint(url, token=token)
    response = _get(endpoint, "models")
    if response is None:
        return ok("token", "not checked, because no server responds")
    if not _rejects_token(response):
        return ok("token", "valid" if endpoint.token else "none is needed")
    if endpoint.running is not None:
        remedy = "`segserve stop` and `segserve serve` make a new one"
    else:
        remedy = f"get a new one from its operator, and name it with --token or in {TOKEN_VARIABLE}"
    fault = "is wrong or has expired" if endpoint.token else "is needed, and none was given"
    # Else it may be anyone's server that listens there.
    is_meant = url or endpoint.running or endpoint.token
    found = problem if is_meant else warning
    return found("token", f"that of {endpoint.url} {fault}", remedy)


def _wanted_ports() -> list[tuple[str, int]]:
    """Host and port of every address that a server would listen at, were all of them free."""
    from ..engines.config import read_config, wanted_address

    settings = read_config()
    return [wanted_address(settings, f"{name}_address") for name in ("inference", "metrics")]


def _own_ports(server: "Server | None") -> set[int]:
    if server is None:
        return set()
    return {urlsplit(url).port or 0 for url in (server.inference_url, server.metrics_url)}


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port)):  # as TorchServe: closed connections do not count
            return True
    except OSError:
        return False


def _owner(port: int) -> str:
    """The process that listens at the port, where this user may see it."""
    with suppress(Exception):  # a courtesy: without psutil or the rights, only the port is shown
        import psutil

        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr[1:] == (port,)
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


def _own_server(server: "Server") -> Finding:
    from ..engines import ServerError

    where = f"{server.inference_url} with {', '.join(server.models)}"
    try:
        server.wait_ready(timeout_s=0)
    except ServerError as error:
        remedy = f"wait, if it has just been started; else read {server.log_path}"
        return problem("server", f"{where}: {str(error).partition('; the log is')[0]}", remedy)
    return ok("server", f"{where}: a worker is READY")


def _get(endpoint: "Endpoint", path: str) -> "requests.Response | None":
    import requests

    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    # No proxy stands between us and our own server.
    past_proxies = {"no_proxy": "*"} if endpoint.running else None
    try:
        return requests.get(
            f"{endpoint.url.rstrip('/')}/{path}",
            headers=headers,
            timeout=_HTTP_TIMEOUT_S,
            proxies=past_proxies,
        )
    except requests.RequestException:
        return None


def _status(response: "requests.Response") -> str:
    try:
        return str(response.json()["status"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"


def _rejects_token(response: "requests.Response") -> bool:
    """The gateway and TorchServe return 400, a proxy 401 or 403."""
    return response.status_code in (401, 403) or (
        response.status_code == 400 and "InvalidKeyException" in response.text
    )
