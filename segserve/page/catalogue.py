"""Which models the server has, and which classes each of them knows: as far as it tells."""

from dataclasses import dataclass
from typing import Any

import requests

from ..server.endpoint import Endpoint

_TIMEOUT_S = 5


@dataclass(frozen=True)
class Catalogue:
    """What can be chosen from. `labels` are those of `model`, background left out; empty where they are not known."""

    models: tuple[str, ...]
    model: str
    labels: tuple[str, ...] = ()


def read_catalogue(endpoint: Endpoint) -> Catalogue:
    """Models and classes from the management port, which only the machine's own server can be asked at.

    Where it does not answer, the catalogue has the endpoint's model alone.
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


def _asked(endpoint: Endpoint, path: str) -> Any:  # noqa: ANN401 - whatever the JSON is
    assert endpoint.running is not None  # noqa: S101 - tells mypy
    token = endpoint.running.management_token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with requests.Session() as session:
        session.trust_env = False  # no proxy stands between us and our own server
        answer = session.get(f"{endpoint.running.management_url}/{path}", headers=headers, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return answer.json()
