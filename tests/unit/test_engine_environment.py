"""What a server's processes see of the environment."""

import pytest

from segserve.engines import ServerError
from segserve.engines.config import read_config
from segserve.engines.processes import allowed_environment
from segserve.runtime.cores import bounded_spinning
from tests.conftest import PROJECT

NEEDED = {
    "PATH": "/bin",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "2",
    "CUDA_VISIBLE_DEVICES": "0",
    "PYTHONPATH": "/opt",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    "LD_PRELOAD": "/usr/lib/libjemalloc.so",
}


def hidden() -> str:
    return read_config(PROJECT / "config.properties")["blacklist_env_vars"]


def test_allowed_environment_has_what_servers_need():
    assert allowed_environment(NEEDED, hidden=hidden()) == {**bounded_spinning({}), **NEEDED}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_allowed_environment_bounds_the_spinning_of_threads_unless_the_user_sets_it(name):
    assert allowed_environment({}) == {"GOMP_SPINCOUNT": "2000"}
    assert allowed_environment({name: "own"}) == {name: "own"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("AWS_SECRET_ACCESS_KEY", id="aws"),
        pytest.param("SEGSERVE_TOKEN", id="our-token"),
        pytest.param("DATABASE_URL", id="password-in-a-url"),
        pytest.param("https_proxy", id="password-in-a-proxy"),
        pytest.param("SSH_AUTH_SOCK", id="agent"),
        pytest.param("TS_CONFIG_FILE", id="torchserve-settings"),
        pytest.param("LOG_LOCATION", id="torchserve-log"),
        pytest.param("PYTORCH_API_TOKEN", id="of-a-known-family"),
        pytest.param("KUBERNETES_SERVICE_HOST", id="kubernetes"),
        pytest.param("RAY_ADDRESS", id="ray"),
    ],
)
def test_allowed_environment_lacks_everything_else(name):
    assert allowed_environment({**NEEDED, name: "value"}, hidden=hidden()) == {
        **bounded_spinning({}),
        **NEEDED,
    }


def test_allowed_environment_has_what_is_named_but_not_what_is_hidden():
    environment = {"SEGSERVE_WORKER_ENV": "MY_MODE, MY_TOKEN,", "MY_MODE": "fast", "MY_TOKEN": "t"}
    assert allowed_environment(environment, hidden=hidden()) == {
        **bounded_spinning({}),
        "MY_MODE": "fast",
    }
    assert allowed_environment(environment) == {
        **bounded_spinning({}),
        "MY_MODE": "fast",
        "MY_TOKEN": "t",
    }


def test_allowed_environment_with_a_broken_expression_names_the_setting():
    with pytest.raises(ServerError, match=r"blacklist_env_vars: '\(' is not a regular expression"):
        allowed_environment({}, hidden="(")
