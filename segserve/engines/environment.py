"""The environment of a server's processes: only the variables that they are known to need.

Archives are code, and can read the environment of their process and of its parent. This is a list
of what is passed on and not of what is hidden, because a secret need not look like one:
`DATABASE_URL`, or a proxy's address with a password in it.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..runtime.cores import bounded_spinning
from .errors import ServerError

HIDDEN_SETTING = "blacklist_env_vars"
"""TorchServe's name for what is kept out of its workers' environment."""

EXTRA_VARIABLE = "SEGSERVE_WORKER_ENV"
"""Names more variables to hand on, with commas between."""

# A worker's unix socket is TMP/.ts.sock.9000, and its path may have 103 bytes on macOS.
_LONGEST_TMP_BYTES = 85
_KNOWN_NAMES = """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME JAVA_HOME JAVA_TOOL_OPTIONS
    JDK_JAVA_OPTIONS LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV SSL_CERT_FILE SSL_CERT_DIR
    REQUESTS_CA_BUNDLE
"""
# Of the locale, the interpreter, numerical libraries, accelerators, and of traces
# (docs/metrics.md).
_KNOWN_BEGINNINGS = """
    LC_ PYTHON OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ DNNL_ ONEDNN_ MALLOC_ TORCH ATEN_ PYTORCH_ TRITON_
    CUDA_ CUBLAS_ CUDNN_ NVIDIA_ NCCL_ ROCR_ HIP_ HSA_ OTEL_
"""
_NAMES, _BEGINNINGS = frozenset(_KNOWN_NAMES.split()), tuple(_KNOWN_BEGINNINGS.split())


def handed_on(environment: Mapping[str, str], *, hidden: str = "") -> dict[str, str]:
    """The part of an environment that a server gets, with `bounded_spinning`.

    Args:
        hidden: a regular expression; a name that it matches whole is left out in any case.

    Raises:
        ServerError: a name in `SEGSERVE_WORKER_ENV`, or the expression, is not valid.
    """
    extra = _extra(environment.get(EXTRA_VARIABLE, ""))
    try:
        is_hidden = re.compile(hidden or r"(?!)").fullmatch
    except re.error as error:
        raise ServerError(
            f"{HIDDEN_SETTING}: {hidden!r} is not a regular expression: {error}"
        ) from error
    kept = {
        name: value
        for name, value in environment.items()
        if (name in extra or name in _NAMES or name.startswith(_BEGINNINGS)) and not is_hidden(name)
    }
    return {**bounded_spinning(kept), **kept}


def hide_environment(hidden: str) -> None:
    """Removes from this process, and so from its later children, what `handed_on` leaves out."""
    kept = handed_on(os.environ, hidden=hidden)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def make_tmp_dir(run_dir: Path, *, longest_bytes: int = _LONGEST_TMP_BYTES) -> Path:
    """An empty folder for models and sockets: in the run folder, unless that path is too long."""
    inside = run_dir / "tmp"
    shutil.rmtree(inside, ignore_errors=True)
    if len(os.fsencode(inside)) <= longest_bytes:
        inside.mkdir(mode=0o700)
        return inside
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/segserve-12345678") > longest_bytes:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    return Path(tempfile.mkdtemp(prefix="segserve-", dir=parent))


def use_new_tmp_dir(run_dir: Path, *, longest_bytes: int = _LONGEST_TMP_BYTES) -> Path:
    """Makes this process and its later children write their temporary files to such a folder."""
    folder = make_tmp_dir(run_dir, longest_bytes=longest_bytes)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # look it up again
    return folder


def _extra(listed: str) -> frozenset[str]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ServerError(
                f"{EXTRA_VARIABLE}: expected names of variables with commas between, got {name!r}"
            )
    return frozenset(names)
