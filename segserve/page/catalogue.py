"""The server's models and their classes, as far as the server reports them."""

from dataclasses import dataclass
from typing import Any

import requests

from ..engines.endpoint import Endpoint

_TIMEOUT_S = 5


@dataclass(frozen=True)
class Catalogue:
    """The choices of the page. `labels` are the classes of `model` without background; empty if
    unknown.
    """

    models: tuple[str, ...]
    model: str
    labels: tuple[str, ...] = ()


def read_catalogue(endpoint: Endpoint) -> Catalogue:
    """Reads models and classes from the management port. This port is only available for a server
    on this machine.

    If the port does not respond, the catalogue contains only the endpoint's model.
    """
    alone = Catalogue((endpoint.model,), endpoint.model)
    if endpoint.running is None:
        return alone
    try:
        models = tuple(entry["modelName"] for entry in _asked(endpoint, "models")["models"])
        model = endpoint.model if endpoint.model in models else models[0]
        [described] = _asked(endpoint, f"models/{model}?customized=true")
        labels = tuple(info["label"] for info in described["customizedMetadata"]["classes"])
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return alone
    return Catalogue(models, model, labels[1:])


def _asked(endpoint: Endpoint, path: str) -> Any:  # noqa: ANN401 - any JSON
    assert endpoint.running is not None  # noqa: S101 - for mypy
    token = endpoint.running.management_token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with requests.Session() as session:
        session.trust_env = False  # no proxy for a server on this machine
        answer = session.get(
            f"{endpoint.running.management_url}/{path}", headers=headers, timeout=_TIMEOUT_S
        )
    answer.raise_for_status()
    return answer.json()
