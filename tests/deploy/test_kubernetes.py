"""What is applied to a cluster, rendered by Helm itself and held against the schemas of
Kubernetes.
"""

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from segserve import __version__
from segserve.engines.ray import Arguments
from segserve.gateway.settings import GatewaySettings, variables
from tests.conftest import PROJECT

helm = pytest.importorskip(
    "helm_python", reason="Helm is not installed: pip install helm-python-sdk"
)

KUBERNETES = (
    "1.27",
    "1.37",
)  # the oldest that the chart takes, and the newest whose schemas there are
CHART = PROJECT / "deploy" / "kubernetes" / "segserve"
SECRET = {"auth": {"secret": "segserve-token"}}

VALUES = {
    "plain": {},
    "gpu": {"gpu": {"count": 1}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "autoscaled": {"autoscaling": {"enabled": True, "queueMilliseconds": 500}},
    "models-of-a-claim": {
        "models": {"claim": "models", "archives": ["/models/a.mar", "/models/b.mar"]}
    },
    "models-of-a-container": {
        "models": {"init": {"image": "fetch:1", "command": ["fetch", "/models"]}}
    },
    "signed": {
        "models": {"trust": "segserve-keys", "claim": "models", "archives": ["/models/a.mar"]}
    },
    "named-by-numbers": {"auth": {"secret": "123", "managementSecret": "1e3"}, "env": {"NO": "x"}},
    "managed": {"auth": {"secret": "segserve-token", "managementSecret": "segserve-management"}},
    "watched": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "grpc": {"env": {"SEGSERVE_GRPC_PORT": 8084}},
    "open": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
}
ENVIRONMENT = {
    "SEGSERVE_CLIENT_WAITING": 1000000,
    "SEGSERVE_START_TIMEOUT_S": 600.5,
    "FLAG": True,
    "TEXT": "1e3",
}


def render(values: dict) -> dict[str, dict]:
    """Every object by its kind."""
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(SECRET | values, name="demo", namespace="prod")
    documents = [yaml.safe_load(text) for name, text in texts.items() if not name.endswith(".txt")]
    return {document["kind"]: document for document in documents if document}


def server_of(objects: dict[str, dict]) -> dict:
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", VALUES)
def test_chart_rendered_fits_the_schemas(name, version):
    for kind, document in render(VALUES[name]).items():
        if kind != "ServiceMonitor":  # Prometheus Operator's, not of Kubernetes
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"auth": {"secret": ""}}, "/auth/secret", id="no-token"),
        pytest.param({"replicsa": 3}, "replicsa", id="unknown-value"),
        pytest.param({"gpu": {"count": "one"}}, "/gpu/count", id="wrong-type"),
        pytest.param(
            {"models": {"archives": ["model.mar"]}}, "/models/archives/0", id="relative-archive"
        ),
        pytest.param(
            {"autoscaling": {"enabled": True, "cpuPercent": 0}},
            "/autoscaling",
            id="scaled-by-nothing",
        ),
        pytest.param(
            {"autoscaling": {"enabled": True, "min": 5, "max": 2}},
            "autoscaling.min is more",
            id="scaled-down",
        ),
        pytest.param(
            {"models": {"claim": "c", "init": {"image": "i"}}}, "/models", id="two-sources"
        ),
        pytest.param({"env": {"SEGSERVE_PORT": 9000}}, "SEGSERVE_PORT", id="port-of-the-chart"),
        pytest.param(
            {"podDisruptionBudget": {"maxUnavailable": "0%"}}, "maxUnavailable", id="no-drain"
        ),
        pytest.param({"service": {"port": 0}}, "/service/port", id="port"),
    ],
)
def test_chart_with_wrong_values_is_rejected_by_its_schema(values, message):
    with pytest.raises(helm.HelmError, match=message):
        render(values)


def test_chart_has_no_findings():
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(SECRET)
    severe = [found for found in helm.lint(str(CHART))["messages"] if found["severity"] > 2]
    assert all("/auth/secret" in found["error"] for found in severe), severe


def test_chart_and_manifest_name_the_project_s_version(ray_service):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    images = {
        container["image"]
        for group in groups
        for container in group["template"]["spec"]["containers"]
    }
    assert images == {f"segserve:{__version__}-ray"}


def test_chart_pod_has_no_rights():
    pod = render({})["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert server_of(render({}))["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_chart_sets_variables_that_the_container_has():
    objects = render(
        {"gpu": {"count": 1}, "models": {"archives": ["/models/a.mar"]}, **VALUES["managed"]}
    )
    environment = {entry["name"]: entry["value"] for entry in server_of(objects)["env"]}
    assert set(environment) <= set(variables())
    settings = GatewaySettings.from_environment(environment)
    assert (settings.device, settings.archive) == ("gpu", (Path("/models/a.mar"),))
    ports = {port["name"]: port["containerPort"] for port in server_of(objects)["ports"]}
    assert ports == {
        "http": settings.port,
        "metrics": settings.metrics_port,
        "management": settings.management_port,
    }


def test_chart_opens_the_port_of_grpc_if_it_is_set():
    objects = render(VALUES["grpc"])
    assert {"name": "grpc", "containerPort": 8084} in server_of(objects)["ports"]
    service_ports = objects["Service"]["spec"]["ports"]
    assert {"name": "grpc", "port": 8084, "targetPort": "grpc"} in service_ports
    allowed = objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert allowed == [{"port": "http"}, {"port": "grpc"}]
    assert "grpc" not in str(render({}))


def test_chart_leaves_large_numbers_as_they_are():
    environment = {
        entry["name"]: entry["value"] for entry in server_of(render({"env": ENVIRONMENT}))["env"]
    }
    assert {name: environment[name] for name in ENVIRONMENT} == {
        "SEGSERVE_CLIENT_WAITING": "1000000",
        "SEGSERVE_START_TIMEOUT_S": "600.5",
        "FLAG": "true",
        "TEXT": "1e3",
    }


def test_chart_waits_for_a_start_as_long_as_the_container_does():
    for values, least in (
        ({}, 120),
        ({"env": ENVIRONMENT}, 601),
        ({"env": {"SEGSERVE_START_TIMEOUT_S": "900.5"}}, 900),
    ):
        probe = server_of(render(values))["startupProbe"]
        assert least < probe["periodSeconds"] * probe["failureThreshold"] < least + 70


def test_chart_with_trusted_keys_puts_them_where_the_container_reads_them():
    objects = render(VALUES["signed"])
    environment = {entry["name"]: entry["value"] for entry in server_of(objects)["env"]}
    trust = GatewaySettings.from_environment(environment).trust
    [mount] = [mount for mount in server_of(objects)["volumeMounts"] if mount["name"] == "trust"]
    [volume] = [
        v
        for v in objects["Deployment"]["spec"]["template"]["spec"]["volumes"]
        if v["name"] == "trust"
    ]
    [item] = volume["configMap"]["items"]
    assert volume["configMap"]["name"] == "segserve-keys"
    assert trust == Path(mount["mountPath"]) / item["path"]


def test_chart_gives_a_pod_time_to_drain():
    pod = render({"drain": {"delaySeconds": 7, "timeoutSeconds": 90}})["Deployment"]["spec"][
        "template"
    ]["spec"]
    environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    settings = GatewaySettings.from_environment(environment)
    assert (settings.drain_delay_s, settings.drain_timeout_s) == (7, 90)
    assert pod["terminationGracePeriodSeconds"] > 97


def test_chart_probes_check_that_a_worker_is_ready():
    server = server_of(render({}))
    probes = [
        server[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    assert probes == [{"path": "/ping", "port": "http"}] * 3


def test_chart_autoscaler_looks_at_processor_and_queue_and_sets_the_replicas_alone():
    objects = render({"autoscaling": {"enabled": True, "queueMilliseconds": 500}})
    metrics = {
        metric["type"]: metric for metric in objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    }
    assert metrics["Resource"]["resource"]["target"]["averageUtilization"] == 75
    assert metrics["Pods"]["pods"]["target"]["averageValue"] == "500m"
    assert "replicas" not in objects["Deployment"]["spec"]


def test_chart_network_policy_lets_the_server_open_no_connection():
    policy = render({})["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_chart_network_policy_lets_an_init_container_connect_to_all_or_named_hosts():
    rules = [{"ports": [{"port": 443}]}]
    values = VALUES["models-of-a-container"]
    assert render(values)["NetworkPolicy"]["spec"]["egress"] == [{}]
    assert (
        render({**values, "networkPolicy": {"to": rules}})["NetworkPolicy"]["spec"]["egress"]
        == rules
    )


@pytest.fixture(scope="module")
def ray_service():
    return yaml.safe_load(
        (PROJECT / "deploy" / "kubernetes" / "rayservice.yaml").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("version", KUBERNETES)
def test_ray_service_pods_fit_the_schemas(ray_service, version):
    cluster = ray_service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, version, strict=True)


def test_ray_service_containers_bring_probes_that_need_no_program_of_the_image(ray_service):
    cluster = ray_service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert "httpGet" in container["readinessProbe"], container["name"]
            assert "httpGet" in container["livenessProbe"], container["name"]


def test_ray_service_application_is_one_that_ray_serve_takes(ray_service):
    schema = pytest.importorskip(
        "ray.serve.schema", reason="Ray is not installed: pip install 'segserve[ray]'"
    )
    config = schema.ServeDeploySchema.model_validate(
        yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    )
    [application] = config.applications
    assert application.import_path == "segserve.engines.ray:app"
    arguments = Arguments.model_validate(application.args)
    assert (arguments.archive, arguments.threads) == ("/opt/segserve/model.mar", 2)


def test_ray_service_runs_the_ray_of_constraints(ray_service):
    pinned = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={ray_service['spec']['rayClusterConfig']['rayVersion']}" in pinned


KSERVE_OWN = {
    "type": "object",
    "additionalProperties": False,
    "required": ["deploymentStrategy", "minReplicas", "maxReplicas"],
    "properties": {
        "deploymentStrategy": {"type": "object"},
        "minReplicas": {"type": "integer", "minimum": 0},
        "maxReplicas": {"type": "integer", "minimum": 1},
        "scaleMetric": {"enum": ["cpu", "memory"]},  # with an autoscaler of the class hpa
        "scaleTarget": {"type": "integer", "minimum": 1, "maximum": 100},
    },
}
"""The fields of a predictor that KServe has beside those of a pod; the names are those of
`kserve.models.V1beta1PredictorSpec` 0.21."""


@pytest.fixture(scope="module")
def inference_service():
    return yaml.safe_load(
        (PROJECT / "deploy" / "kserve" / "inferenceservice.yaml").read_text(encoding="utf-8")
    )


def pod_of(inference_service: dict) -> dict:
    predictor = inference_service["spec"]["predictor"]
    return {
        name: value for name, value in predictor.items() if name not in KSERVE_OWN["properties"]
    }


@pytest.mark.parametrize("version", KUBERNETES)
def test_inference_service_fits_the_schemas(inference_service, version):
    predictor = inference_service["spec"]["predictor"]
    own = {name: predictor[name] for name in predictor.keys() & KSERVE_OWN["properties"].keys()}
    jsonschema.validate(own, KSERVE_OWN)
    assert set(inference_service) == {"apiVersion", "kind", "metadata", "spec"}
    assert inference_service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert set(inference_service["spec"]) == {"predictor"}
    labels = {"app": "segserve"}
    deployment = {  # what KServe makes of it
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": inference_service["metadata"],
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": own["deploymentStrategy"],
            "template": {"metadata": {"labels": labels}, "spec": pod_of(inference_service)},
        },
    }
    kubernetes_validate.validate(deployment, version, strict=True)


def test_inference_service_pod_is_that_of_the_chart(inference_service):
    deployment = render({})["Deployment"]["spec"]
    chart, pod = deployment["template"]["spec"], pod_of(inference_service)
    del chart["topologySpreadConstraints"]  # of the chart's labels
    [of_chart], [container] = chart.pop("containers"), pod.pop("containers")
    assert pod == chart
    assert container.pop("name") == "kserve-container"  # the name that KServe requires
    assert {name: of_chart[name] for name in container} == container
    assert set(of_chart) == {*container, "name", "imagePullPolicy"}
    strategy = inference_service["spec"]["predictor"]["deploymentStrategy"]
    assert strategy["rollingUpdate"] == deployment["strategy"]["rollingUpdate"]
