"""Every query of dashboard, rules and documents, sent to a real Prometheus that scrapes a running
container.
"""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml

from segserve.archive import build_archive
from tests.conftest import PROJECT
from tests.unit.images import encoded, smooth
from tests.unit.tiny import write_tiny_model

from .served import free_ports, running
from .test_compose import PROMETHEUS, process

DEPLOY = PROJECT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "segserve.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load(
        (DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    )["groups"]
    for rule in group["rules"]
]
TOKEN = "a-token-of-some-length"  # noqa: S105
WITHOUT_DATA = {"Memory B"}  # a GPU's
LONGEST_S = 50

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed: it cannot be queried"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The container's command with a tiny network, one turn for each client, and one request more
    that may wait.
    """
    folder = tmp_path_factory.mktemp("server")
    (model := folder / "tiny").mkdir()
    (folder / "token").write_text(TOKEN)
    archive = build_archive(write_tiny_model(model), folder / "build")
    place = {
        "ARCHIVE": archive,
        "TOKEN_FILE": folder / "token",
        "HOST": "127.0.0.1",
        "RUN_DIR": folder / "run",
    }
    port, metrics_port = free_ports(2)
    limits = {"CLIENT_IN_FLIGHT": 1, "CLIENT_WAITING": 1}
    with running(folder, **place, **limits, PORT=port, METRICS_PORT=metrics_port) as command:
        command.wait_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}", f"127.0.0.1:{metrics_port}"


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """The address of one with the project's settings, but for its times: it looks every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    for name in ("prometheus.yml", "alerts.yaml"):
        text = (DEPLOY / "prometheus" / name).read_text(encoding="utf-8")
        text = re.sub(r"\b((?:scrape_|evaluation_)?interval): \w+", r"\1: 1s", text)
        (folder / name).write_text(text.replace("server:8082", server[1]))
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    with process(
        *command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", url=f"{url}/-/ready"
    ):
        yield url
    shutil.rmtree(folder / "data")


def send_in_every_way(url):
    """Responses of every status: 200, invalid image, no token, too large, too many at once."""
    target, image, bearer = (
        f"{url}/predictions/tiny",
        encoded(smooth(40, 60)),
        {"Authorization": f"Bearer {TOKEN}"},
    )

    def send(body, headers):
        return requests.post(target, data=body, headers=headers, timeout=60).status_code

    statuses = [
        send(image, bearer),
        send(b"no image", bearer),
        send(image, {}),
        send(bytes(64 * 2**20 + 1), bearer),
    ]
    with ThreadPoolExecutor(8) as clients:
        return {*statuses, *clients.map(lambda _: send(image, bearer), range(8))}


def queried(url, expression):
    """Samples of an expression now, but for those that are not a number."""
    response = requests.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30)
    assert response.ok, (expression, response.text)
    return [sample for sample in response.json()["data"]["result"] if sample["value"][1] != "NaN"]


def variables(url):
    """Grafana's variables with the values that their own queries find, as one that shows all of
    them does.
    """
    values = {"__rate_interval": "1m"}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(
                r"label_values\((.+), (\w+)\)", variable["query"]["query"]
            ).groups()
            response = requests.get(
                f"{url}/api/v1/label/{label}/values",
                params={"match[]": filled(series, values)},
                timeout=30,
            )
            values[variable["name"]] = "|".join(response.json()["data"])
    return values


def filled(expression, values):
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def targets():
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def test_every_panel_and_every_rule_has_data_of_a_container_after_requests(server, prometheus):
    recorded = {rule["record"]: rule["record"] for rule in RULES if "record" in rule}
    without_data = {**targets(), **recorded}
    assert set(targets()) >= WITHOUT_DATA
    statuses = set()
    deadline = time.monotonic() + LONGEST_S
    while set(without_data) != WITHOUT_DATA:
        assert time.monotonic() < deadline, f"no data: {sorted(set(without_data) - WITHOUT_DATA)}"
        statuses |= send_in_every_way(server[0])
        time.sleep(1)  # until it has been looked at
        values = variables(prometheus)
        without_data = {
            name: expression
            for name, expression in without_data.items()
            if not queried(prometheus, filled(expression, values))
        }
    assert (values["job"], values["model"]) == ("segserve", "tiny")
    assert statuses == {200, 400, 413, 415, 503}


def test_every_rule_is_evaluated_without_error(server, prometheus):
    send_in_every_way(server[0])
    deadline = time.monotonic() + LONGEST_S
    while "unknown" in (health := health_of_rules(prometheus)).values():
        assert time.monotonic() < deadline, health
        time.sleep(0.5)
    assert set(health) == {rule.get("record") or rule["alert"] for rule in RULES}
    assert set(health.values()) == {"ok"}
    for rule in RULES:
        queried(prometheus, rule["expr"])


def health_of_rules(url):
    groups = requests.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}


def test_every_annotation_and_documented_query_returns_no_error(prometheus):
    document = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```promql\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    assert examples
    for expression in [*examples, *(each["expr"] for each in DASHBOARD["annotations"]["list"])]:
        queried(prometheus, expression)


def test_gateway_s_rejections_are_failures_of_the_service(server, prometheus):
    send_in_every_way(server[0])
    deadline = time.monotonic() + LONGEST_S
    while not queried(prometheus, 'segserve:error_ratio:5m{job="segserve"} > 0.05'):
        assert time.monotonic() < deadline, "errors of the gateway are missing from the error ratio"
        send_in_every_way(server[0])
        time.sleep(1)


def test_autoscaler_s_metric_is_a_container_s_wait_at_the_gateway_and_behind_it(server, prometheus):
    page = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    [rule] = yaml.safe_load(
        re.search(r"^```yaml\n(rules:.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    )["rules"]["custom"]
    query = (
        rule["metricsQuery"]
        .replace("<<.LabelMatchers>>", 'job="segserve"')
        .replace("<<.GroupBy>>", "instance")
    )
    deadline = time.monotonic() + LONGEST_S
    while not (found := queried(prometheus, query)):
        assert time.monotonic() < deadline, "the rule has no data"
        send_in_every_way(server[0])
        time.sleep(1)
    [at_the_gateway] = queried(
        prometheus,
        "rate(segserve_gateway_wait_seconds_sum[2m]) / "
        "rate(segserve_gateway_wait_seconds_count[2m])",
    )
    assert found[0]["metric"] == {"instance": server[1]}
    assert float(found[0]["value"][1]) > float(at_the_gateway["value"][1]) > 0
