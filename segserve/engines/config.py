"""The settings of config.properties, and those of TorchServe in one run: with free ports.

The order is: overrides > the run's ports and paths > config.properties. TorchServe silently ignores
unknown keys; here they are an error.
"""

import errno
import os
import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import javaproperties

from ..resources import resource
from ..runtime.errors import BadRequestError, TooLargeError
from ..runtime.files import write_whole
from . import ServerError

# Every key of TorchServe 0.12.0 (the constants of its ConfigManager), and vmargs, which its
# launcher reads.
_KEYS = """
    allowed_urls async_logging blacklist_env_vars certificate_file cors_allowed_headers
    cors_allowed_methods cors_allowed_origin cpp_log_config cpu_launcher_args cpu_launcher_enable
    debug decode_input_request default_response_timeout default_service_handler
    default_startup_timeout default_workers_per_model disable_system_metrics
    disable_token_authorization enable_envvars_config enable_grpc_ssl enable_metrics_api
    enable_model_api grpc_inference_address grpc_inference_max_connection_age_grace_ms
    grpc_inference_max_connection_age_ms grpc_inference_port grpc_management_address
    grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms
    grpc_management_port inference_address initial_distribution_port initial_worker_port
    install_py_dep_per_model io_ratio ipex_enable ipex_gpu_enable job_queue_size keystore
    keystore_pass keystore_type limit_max_image_pixels load_models management_address
    max_request_size max_response_size metric_time_interval metrics_address metrics_config
    metrics_mode model_metrics_auto_detect model_server_home model_snapshot model_store models
    netty_client_threads number_of_gpu number_of_netty_threads prefer_direct_buffer private_key_file
    service_envelope system_metrics_cmd token_expiration_min ts_header_key_sequence_end
    ts_header_key_sequence_id ts_header_key_sequence_start ts_open_inference_protocol
    unregister_model_timeout use_env_allowed_urls use_native_io vmargs
    workflow_store
"""
KNOWN_KEYS = frozenset(_KEYS.split())

_MAX_REQUEST_BYTES = "6553500"  # TorchServe's own limit, if config.properties sets none
_HTTP_PORTS = {  # by key, the environment variable and TorchServe's default
    "inference_address": ("SEGSERVE_PORT", 8080),
    "management_address": ("SEGSERVE_MANAGEMENT_PORT", 8081),
    "metrics_address": ("SEGSERVE_METRICS_PORT", 8082),
}
_GRPC_PORTS = {"grpc_inference": 7070, "grpc_management": 7071}


def read_properties(path: Path) -> dict[str, str]:
    """Reads a Java properties file. Raises ServerError: it cannot be read."""
    try:
        with path.open("rb") as file:
            return javaproperties.load(file)
    except OSError as error:
        raise ServerError(f"cannot read the settings {path}: {error.strerror}") from error
    except javaproperties.InvalidUEscapeError as error:
        raise ServerError(f"{path}: {error}") from error


def write_properties(properties: Mapping[str, str], path: Path) -> None:
    """Writes a Java properties file, sorted by key."""
    write_whole(path, javaproperties.dumps(properties, sort_keys=True, timestamp=False))


def read_config(path: Path | None = None) -> dict[str, str]:
    """Reads a config.properties, by default the project's own.

    Raises ServerError: it cannot be read, or TorchServe has no such key.
    """
    path = path or resource("config.properties")
    properties = read_properties(path)
    _check_keys(properties, where=str(path))
    return properties


def merge(
    config: Mapping[str, str], *, model_store: Path, overrides: Mapping[str, str]
) -> dict[str, str]:
    """The settings of one run: free ports, and URLs of models limited to the run's own store.

    Raises ServerError: an unknown key in `overrides`, or as `choose_addresses`.
    """
    _check_keys(overrides, where="overrides")
    settings = {**config, "allowed_urls": store_urls(model_store), **overrides}
    return {**settings, **choose_addresses(settings)}


def max_request_bytes(settings: Mapping[str, str]) -> int:
    """The limit of a request's size. Raises ServerError: it is not a number."""
    size = settings.get("max_request_size", _MAX_REQUEST_BYTES)
    if not size.isdecimal():
        raise ServerError(f"max_request_size must be a number of bytes, got {size!r}")
    return int(size)


def too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the request has more than {max_bytes} bytes, the limit of this server; send the image "
        "smaller, or as JPEG or PNG"
    )


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def duplicate_part() -> BadRequestError:
    return BadRequestError(
        "the form has two parts with the same name; send one image a request, and each option once"
    )


def choose_addresses(settings: Mapping[str, str]) -> dict[str, str]:
    """The addresses and ports, each with the port of the environment, else that of `settings`.

    A port that is taken is replaced by a free one. An empty variable counts as absent. Raises
    ServerError: a port is not valid or may not be bound, or an address is not a URL of one.
    """
    chosen = {}
    with ExitStack() as held:  # all ports stay bound until all are chosen, so that they differ
        for key in _HTTP_PORTS:
            host, port = configured_address(settings, key)
            chosen[key] = f"http://{host}:{_free_port(host, port, held)}"
        for prefix, default in _GRPC_PORTS.items():
            host = settings.get(f"{prefix}_address", "127.0.0.1")
            port = _parse_port(settings.get(f"{prefix}_port", str(default)), f"{prefix}_port")
            chosen[f"{prefix}_address"] = host
            chosen[f"{prefix}_port"] = str(_free_port(host, port, held))
    return chosen


def loopback(url: str) -> str:
    """The URL at which this machine reaches a server that may listen on every interface."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:")


def configured_address(settings: Mapping[str, str], key: str) -> tuple[str, int]:
    """Host, and the port of the environment, else that of `settings`. It may be in use."""
    variable, default = _HTTP_PORTS[key]
    address = settings.get(key, f"http://127.0.0.1:{default}")
    parts = re.fullmatch(r"http://([^/:]+)(?::([^/:]*))?/?", address)
    if parts is None:
        raise ServerError(f"{key} must be http://HOST:PORT, got {address!r}; use a proxy for TLS")
    host, port = parts.groups()
    wanted = default if port is None else _parse_port(port, key)
    text = os.environ.get(variable, "").strip()
    return host, _parse_port(text, variable) if text else wanted


def _check_keys(properties: Mapping[str, str], *, where: str) -> None:
    if unknown := sorted(properties.keys() - KNOWN_KEYS):
        raise ServerError(f"{where}: TorchServe has no setting {unknown[0]!r}")


def _parse_port(text: str, where: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535:
        return int(text)
    raise ServerError(f"{where} must be a port number from 1 to 65535, got {text!r}")


def _free_port(host: str, wanted: int, held: ExitStack) -> int:
    """Binds `wanted`, or any free port where that is taken, for as long as `held` is open."""
    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # As TorchServe: closed connections do not count.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, wanted))
        probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and wanted:
            return _free_port(host, 0, held)
        raise ServerError(f"cannot listen on {host}:{wanted}: {error.strerror}") from error
    return int(probe.getsockname()[1])


def store_urls(model_store: Path) -> str:
    """A regular expression for the file URLs of a store's archives. TorchServe splits it at commas.

    No name may have a percent sign: TorchServe 0.12.0 rejects `..`, but accepts `%2e%2e%2f` and
    then opens the file that it encodes.
    """
    return f"file://{re.escape(str(model_store))}/[^/%]+[.]mar".replace(",", r"\x2c")
