"""The parts of the engines `local` and `ray` without a server: requests, metrics, archives.
A running Ray Serve is in tests/e2e.
"""

import inspect
import json
import math
import os
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from ts.context import Context as TorchServeContext
from ts.context import RequestProcessor
from ts.metrics.caching_metric import CachingMetric

from segserve.archive import build_archive
from segserve.engines.processes import restrict_environment
from segserve.engines.ray import Arguments
from segserve.engines.worker import (
    CollectedMetric,
    CollectedMetrics,
    HandlerContext,
    HandlerProcess,
    Observation,
)
from segserve.runtime import cores
from segserve.runtime.errors import BadRequestError
from segserve.runtime.metrics import BUCKETS, ENGINE, OWN
from tests.conftest import PROJECT
from tests.samples import sample_names

from .images import encoded, noise
from .tiny import write_tiny_model

pytest.importorskip("ray", reason="Ray is not installed: pip install 'segserve[ray]'")

from prometheus_client.parser import text_string_to_metric_families

from segserve.engines import ServerError, unknown_version
from segserve.engines.pool import ServerMetrics, as_headers, as_row
from segserve.engines.ray.build import Replicas, cores_needed, read_named_archives
from segserve.engines.store import read_archive

HEADERS = [{"accept": "image/png"}, {"x-segment-mask": "rle"}]
WORKER = HandlerProcess("tiny", "/model", {"model": {}}, {"batchSize": 2}, 2, None)


# The context


def theirs() -> TorchServeContext:
    context = TorchServeContext(
        WORKER.model_name,
        WORKER.model_dir,
        WORKER.manifest,
        2,
        None,
        "0.12.0",
        model_yaml_config={"batchSize": 2},
    )
    context.request_processor = [RequestProcessor(headers) for headers in HEADERS]
    return context


@pytest.fixture(
    params=[theirs, lambda: HandlerContext(WORKER, HEADERS)], ids=["TorchServe's", "ours"]
)
def context(request):
    return request.param()


def test_context_methods_have_the_parameters_of_torchserve_s():
    ours = {
        name: member
        for name, member in inspect.getmembers(HandlerContext, inspect.isfunction)
        if name[0] != "_"
    }
    assert ours
    for name, method in ours.items():
        parameters = inspect.signature(method).parameters.values()
        real = inspect.signature(getattr(TorchServeContext, name)).parameters.values()
        assert [(p.name, p.default) for p in parameters] == [(p.name, p.default) for p in real]


def test_context_gives_a_handler_what_torchserve_s_does(context):
    reported = context.system_properties
    assert (reported["model_dir"], reported["gpu_id"], reported["batch_size"]) == (
        "/model",
        None,
        2,
    )
    assert (context.model_name, context.manifest, context.model_yaml_config) == (
        "tiny",
        {"model": {}},
        {"batchSize": 2},
    )
    assert context.get_all_request_header(1) == {"x-segment-mask": "rle"}


def test_context_keeps_the_responses_of_a_batch_apart(context):
    assert context.get_response_status(0) == (200, None)
    context.set_response_status(422, "Unprocessable Content", 1)
    context.set_response_content_type(1, "application/json")
    context.set_response_header(1, "Server-Timing", "decode;dur=1")
    assert context.get_response_status(0) == (200, None)
    assert context.get_response_status(1) == (422, "Unprocessable Content")
    assert context.get_response_headers(1) == {
        "content-type": "application/json",
        "Server-Timing": "decode;dur=1",
    }


# The handler of an archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    (model := folder / "tiny").mkdir()
    return build_archive(write_tiny_model(model), folder)


LOAD = """
import json, sys
from pathlib import Path
from segserve.engines.worker import Received, load_handler
archive, folder, image = map(Path, sys.argv[1:])
MODEL = ["model_name", "model_version"]
handler = load_handler(archive, folder, overrides={"handler": {"threads": 1}, "maxWorkers":
3}, gpu_id=None,
                               metrics={"segserve_requests_total": [*MODEL, "status", "encoding",
                               "error"],
                                        "segserve_worker_starts_total": MODEL,
                                        "segserve_batch_size": ["other"]})
row = {"body": image.read_bytes()}
handled = handler.handle([Received(row, {}), Received(row, {"accept": "image/png"})])
homes = {Path(sys.modules[name].__file__).is_relative_to(folder)
         for name in ("handler", "deeplabv3", "segserve.runtime", "segserve.runtime.pipeline",
                      "segserve.schema")}
import torch
print(json.dumps([json.loads(handled[0].body)["width"], handled[1].headers["content-type"],
handler.process.model_yaml_config,
                  sorted(homes), torch.get_num_threads(), handled[0].observations]))
"""


def test_load_handler_runs_the_code_of_the_archive(archive, tmp_path):
    (tmp_path / "image.png").write_bytes(encoded(noise(8, 9)))
    (tmp_path / "model").mkdir()
    command = [
        sys.executable,
        "-c",
        LOAD,
        str(archive),
        str(tmp_path / "model"),
        str(tmp_path / "image.png"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    width, media_type, config, homes, threads, observations = json.loads(result.stdout)
    assert (width, media_type, homes, threads) == (9, "image/png", [True], 1)
    assert (config["maxWorkers"], config["batchSize"], config["handler"]["threads"]) == (3, 4, 1)
    assert config["handler"]["precision"] == "auto"  # what is not overridden stays
    assert observations == [
        ["segserve_worker_starts_total", 1, ["tiny", "1.0"]],
        ["segserve_requests_total", 1, ["tiny", "1.0", "200", "dense", "none"]],
        ["segserve_requests_total", 1, ["tiny", "1.0", "200", "image/png", "none"]],
    ]


def test_load_handler_beside_another_runtime_is_rejected(archive, tmp_path):
    from segserve.engines.worker import load_handler

    with pytest.raises(RuntimeError, match=r"segserve\.runtime is imported already"):
        load_handler(archive, tmp_path, overrides={}, gpu_id=None)


def test_read_archive_reports_name_version_and_settings(archive):
    reported = read_archive(archive)
    assert (
        reported.name,
        reported.version,
        reported.config.batchSize,
        reported.config.jobQueueSize,
    ) == (
        "tiny",
        "1.0",
        4,
        100,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no archive"),
        (b"text", "is not a model archive .*: File is not a zip file"),
        ({"other": "x"}, "is not a model archive .*MANIFEST"),
        (
            {"MAR-INF/MANIFEST.json": "[]", "model-config.yaml": ""},
            "is not a model archive",
        ),
        (
            {
                "MAR-INF/MANIFEST.json": '{"model": {"modelName": "a", "modelVersion": "1"}}',
                "model-config.yaml": "a: 1",
            },
            "model-config.yaml: a: ",
        ),
    ],
    ids=["missing", "no zip", "no manifest", "odd manifest", "unknown setting"],
)
def test_read_archive_that_is_none_says_so(tmp_path, content, message):
    path = tmp_path / "some.mar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as packed:
            for name, text in content.items():
                packed.writestr(name, text)
    with pytest.raises(ServerError, match=message):
        read_archive(path)


# Replicas


def test_replicas_take_the_workers_of_the_archive_unless_set_otherwise(archive):
    config = read_archive(archive).config
    assert (Replicas.of(config, Arguments()).least, Replicas.of(config, Arguments()).most) == (1, 1)
    reported = Replicas.of(config, Arguments(min_replicas=2, max_replicas=5, threads=3))
    assert reported == Replicas(least=2, most=5, threads=3)
    assert reported.scaling(4) == {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 4}
    }
    assert Replicas(2, 2, 1).scaling(4) == {"num_replicas": 2}


def test_replicas_share_the_cores_that_the_cgroup_allows(archive, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_quota", lambda _: 4.0)
    assert Replicas.of(read_archive(archive).config, Arguments(max_replicas=2)).threads == 2


def test_cores_needed_are_those_of_all_replicas_of_all_archives(archive):
    arguments = Arguments(archive=str(archive), max_replicas=3, threads=2)
    assert cores_needed(read_named_archives(arguments), arguments) == 6


def test_cores_needed_without_archive_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv("SEGSERVE_ARCHIVE", raising=False)
    with pytest.raises(
        ServerError, match=r"no archive was named: give archive=FILE\.mar, or set SEGSERVE_ARCHIVE"
    ):
        cores_needed(read_named_archives(Arguments()), Arguments())


def test_arguments_archive_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("SEGSERVE_ARCHIVE", "of-environment.mar")
    assert Arguments().archive == "of-environment.mar"
    assert Arguments(archive="named.mar").archive == "named.mar"


def test_arguments_of_the_documentation_are_those_that_are_known():
    page = (PROJECT / "docs" / "ray.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [application] = yaml.safe_load(block)["applications"]
    assert Arguments(**application["args"]).max_replicas == 16
    named = {
        name
        for row in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert set(Arguments.model_fields) <= named


def test_restrict_environment_leaves_no_secret_and_no_other_ray(monkeypatch):
    names = {"PYTORCH_TOKEN", "RAY_ADDRESS", "DATABASE_URL", "OMP_WAIT_POLICY"}
    before = dict(os.environ)
    for name in names:
        monkeypatch.setenv(name, "value")
    try:
        restrict_environment("(?i).*(TOKEN|SECRET).*")
        assert os.environ.keys() & names == {"OMP_WAIT_POLICY"}
    finally:
        os.environ.update(before)


# Requests


FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'  # noqa: E501
    b"\xff\x00\r\n-\r\n"
    b'--xyz\r\nContent-Disposition: form-data; name="mask"\r\n\r\nrle\r\n--xyz--\r\n'
)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("multipart/form-data; boundary=xyz", {"data": b"\xff\x00\r\n-", "mask": b"rle"}),
        ('Multipart/Form-Data; boundary="xyz"', {"data": b"\xff\x00\r\n-", "mask": b"rle"}),
        ("application/octet-stream", {"body": FORM}),
        ("application/x-www-form-urlencoded", {"body": FORM}),
        ("", {"body": FORM}),
    ],
    ids=["form", "form in capitals", "raw", "web form", "no type"],
)
def test_as_row_gives_what_torchserve_would(content_type, expected):
    assert as_row(FORM, content_type) == expected


def test_as_row_large_parts_are_whole():
    image = bytes(range(256)) * 2**13  # 2 MiB, more than is kept in memory by default
    body = (
        b'--b\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
        + image
        + b"\r\n--b--\r\n"
    )
    assert as_row(body, "multipart/form-data; boundary=b") == {"data": image}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"garbage", "multipart/form-data; boundary=xyz"), (b"garbage", "multipart/form-data")],
    ids=["garbage", "no boundary"],
)
def test_as_row_of_a_broken_form_says_what_was_expected(body, content_type):
    with pytest.raises(
        BadRequestError,
        match=r"the form cannot be read .*; expected multipart/form-data with a part",
    ):
        as_row(body, content_type)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([(b"X-Segment-Mask", b"png")], {"x-segment-mask": "png"}),
        ([(b"accept", b"image/png"), (b"accept", b"*/*")], {"accept": "image/png, */*"}),
        ([(b"describe", b"True"), (b"accept", b"*/*")], {"accept": "*/*"}),
    ],
    ids=["header", "repeated", "TorchServe's own"],
)
def test_as_headers_joins_repeated_headers(raw, expected):
    assert as_headers(raw) == expected


def test_error_of_a_version_has_torchserve_s_format():
    assert unknown_version("deeplabv3", "9").body == (
        b'{\n  "code": 404,\n  "type": "ModelVersionNotFoundException",\n'
        b'  "message": "Model version: 9 does not exist for model: deeplabv3"\n}\n'
    )


# Metrics


def test_metrics_count_under_torchserve_s_names():
    metrics = ServerMetrics()
    metrics.count_prediction("tiny", None, 0.5, 0.25)
    metrics.count_prediction("tiny", "1.0", 0.25, 0.5)
    metrics.count_response(200)
    metrics.count_response(503)
    families = text_string_to_metric_families(metrics.as_text().decode())
    reported = {
        (sample.name, sample.labels.get("model_version")): sample.value
        for family in families
        for sample in family.samples
    }
    assert reported["ts_inference_requests_total", "default"] == 1
    assert reported["ts_inference_latency_microseconds", "default"] == 500_000
    assert reported["ts_queue_latency_microseconds", "default"] == 250_000
    assert reported["ts_queue_latency_microseconds", "1.0"] == 0
    assert [reported[f"Requests{hundred}XX", None] for hundred in (2, 4, 5)] == [1, 0, 1]
    assert reported["PredictionTime", None] == 500
    assert 0 < reported["MemoryUtilization", None] <= 100


def test_metrics_expose_all_that_is_declared_under_its_labels():
    metrics = ServerMetrics()
    metrics.count_prediction("tiny", None, 0.5, 0.25)
    metrics.count_observations(
        Observation(metric.name, 0.25, ("x",) * len(metric.labels)) for metric in OWN
    )
    families = list(text_string_to_metric_families(metrics.as_text().decode()))
    labels = {
        sample.name: set(sample.labels) - {"le"} for family in families for sample in family.samples
    }
    for metric in (*OWN, *ENGINE):
        for name in sample_names(metric):
            assert labels[name] == {*metric.labels, metric.host_label}
    buckets = {
        sample.labels["le"]
        for family in families
        for sample in family.samples
        if "le" in sample.labels
    }
    assert sorted(map(float, buckets)) == [*BUCKETS, math.inf]


def test_metrics_count_observations_add_observe_and_set():
    metrics = ServerMetrics()
    for value in (0.25, 0.5):
        metrics.count_observations(
            [
                Observation("segserve_image_bytes_total", value, ("m", "1")),
                Observation("segserve_request_seconds", value, ("m", "1")),
                Observation("segserve_memory_bytes", value, ("m", "1")),
            ]
        )
    text = metrics.as_text().decode()
    for name, expected in (
        ("segserve_image_bytes_total", "0.75"),
        ("segserve_request_seconds_count", "2.0"),
        ("segserve_request_seconds_sum", "0.75"),
        ("segserve_memory_bytes", "0.5"),
    ):
        assert re.search(rf"^{name}\{{.*\}} {expected}$", text, re.MULTILINE)


def test_collected_metric_has_the_parameters_of_torchserve_s():
    ours, theirs = (
        inspect.signature(CollectedMetric.add_or_update),
        inspect.signature(CachingMetric.add_or_update),
    )
    assert list(ours.parameters) == list(theirs.parameters)[: len(ours.parameters)]


def test_collected_metrics_are_drained_once():
    collected = CollectedMetrics({"a": ("x",)})
    collected.cache["declared"]["a"].add_or_update(1.5, ["y"])
    assert collected.drain() == (Observation("a", 1.5, ("y",)),)
    assert collected.drain() == ()
