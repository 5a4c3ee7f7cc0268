"""The TorchServe handler, with TorchServe's own context, messages and service."""

import inspect
import json
import logging
import re
import shutil
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from ts.protocol.otf_message_handler import create_predict_response

import handler as handler_module
from handler import DeepLabHandler
from segserve.engines.worker import CollectedMetrics
from segserve.runtime.cores import ParallelExecutor, available_cores
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.metrics import OWN
from segserve.runtime.network import build_network
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.record import RECORD_FILE, Architecture, sha256_of
from segserve.runtime.settings import Settings
from segserve.training.model_folder import export_weights

from .images import encoded, noise, png, smooth
from .tiny import tiny_network, tiny_record
from .torchserve import Part, Request, form, raw, received_by, worker_context

CONFIG = {"handler": {"precision": "fp32", "threads": 1}}


@pytest.fixture(scope="module")
def loaded(tiny_model):
    handler = DeepLabHandler()
    handler.initialize(worker_context(tiny_model, CONFIG))
    return handler


def handled(handler, tiny_model, *requests):
    """Each request's body, status, type and Server-Timing, after TorchServe has packed the
    responses.
    """
    context = worker_context(tiny_model, CONFIG)
    rows = received_by(context, *requests)
    bodies = handler.handle(rows, context)
    assert isinstance(bodies, list)
    assert len(bodies) == len(requests)
    assert create_predict_response(
        bodies, context.request_ids, "Prediction success", 200, context=context
    )
    return [
        (
            body,
            context.get_response_status(index)[0],
            context.get_response_content_type(index),
            context.get_response_headers(index).get("Server-Timing", ""),
        )
        for index, body in enumerate(bodies)
    ]


# Requests


def test_handle_mixed_batch_responds_to_each_request_separately(loaded, tiny_model):
    photograph = encoded(smooth(40, 60))
    good, text, png_map, truncated, option, empty, overlay, huge, form_map, rejected = handled(
        loaded,
        tiny_model,
        raw(photograph),
        raw(b"not an image", "text/plain"),
        raw(photograph, Accept="image/png"),
        raw(photograph[: len(photograph) // 2]),
        raw(photograph, X_Segment_Mask="dots"),
        Request(()),
        raw(photograph, accept="image/jpeg"),
        raw(png(100_000, 100_000)),
        form(Part(photograph, "data", "image/png"), Part(b"png", "mask")),
        raw(photograph, Accept="text/html"),
    )
    statuses = [
        response[1]
        for response in (
            good,
            text,
            png_map,
            truncated,
            option,
            empty,
            overlay,
            huge,
            form_map,
            rejected,
        )
    ]
    assert statuses == [200, 415, 200, 422, 400, 400, 200, 413, 200, 406]
    assert png_map[2] == "image/png"
    assert overlay[2] == "image/jpeg"
    assert {
        response[2] for response in (good, text, truncated, option, empty, huge, form_map, rejected)
    } == {"application/json"}
    for response in (good, png_map, overlay, form_map):
        assert re.fullmatch(
            r"decode;dur=\S+, preprocess;dur=\S+, inference;dur=\S+, encode;dur=\S+", response[3]
        )
    for response in (text, truncated, option, empty, huge, rejected):
        assert re.fullmatch(r"decode;dur=[\d.]+", response[3])
        assert set(json.loads(response[0])["error"]) == {"code", "message"}


def test_handle_response_does_not_depend_on_the_batch(loaded, tiny_model):
    request = raw(encoded(smooth(40, 60)))
    ((alone, *_),) = handled(loaded, tiny_model, request)
    bodies = [
        body
        for body, *_ in handled(
            loaded, tiny_model, raw(b"x"), request, raw(encoded(noise(9, 9))), request
        )
    ]
    assert bodies[1] == bodies[3] == alone


def test_handle_reports_the_metrics_of_the_server(tiny_model):
    metrics = CollectedMetrics({metric.name: metric.labels for metric in OWN})
    context = worker_context(tiny_model, CONFIG)
    context.metrics = metrics
    handler = DeepLabHandler()
    handler.initialize(context)
    started = {observation.name for observation in metrics.drain()}
    rows = received_by(context, raw(encoded(smooth(40, 60)), X_Segment_Mask="rle"), raw(b"x"))
    handler.handle(rows, context)
    reported = {(name, *labels[2:]): value for name, value, labels in metrics.drain()}
    assert "segserve_worker_starts_total" in started
    assert reported["segserve_batch_size",] == 2
    assert reported["segserve_requests_total", "200", "rle", "none"] == 1
    assert reported["segserve_requests_total", "415", "dense", "image_unsupported"] == 1


def test_initialize_traces_that_cannot_be_had_reject_the_archive(tiny_model, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(
        RuntimeError,
        match="cannot serve this archive: the environment requests traces through 'zipkin'",
    ):
        DeepLabHandler().initialize(worker_context(tiny_model, CONFIG))


# Memory that runs short


class Crowded(torch.nn.Module):
    """Memory for one image at a time: a network at work beside another finds none."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_network(tiny_record())
        self.one = threading.Lock()
        self.rejected = 0

    def forward(self, inputs):
        if not self.one.acquire(blocking=False):
            self.rejected += 1
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
            )
        try:
            time.sleep(0.2)
            return self.network(inputs)
        finally:
            self.one.release()


@pytest.fixture
def two_threads():
    yield ParallelExecutor(2, torch.set_num_threads)
    torch.set_num_threads(1)


def handler_of(network, parallel, tiny_model) -> DeepLabHandler:
    handler = DeepLabHandler()
    handler.initialize(worker_context(tiny_model, CONFIG))
    settings = Settings(precision="fp32")
    segmenter = Segmenter(network, tiny_record(), device=torch.device("cpu"), settings=settings)
    handler._pipeline, handler._executor = Pipeline(segmenter, settings), parallel
    return handler


def test_handle_without_memory_beside_the_others_is_computed_once_they_are_done(
    tiny_model, two_threads, caplog
):
    network = Crowded()
    handler = handler_of(network, two_threads, tiny_model)
    with caplog.at_level(logging.INFO):
        responses = handled(
            handler, tiny_model, *[raw(encoded(smooth(40 + place, 60))) for place in range(4)]
        )
    assert network.rejected == 3
    assert [status for _, status, *_ in responses] == [200] * 4
    assert [json.loads(body)["height"] for body, *_ in responses] == [40, 41, 42, 43]
    (line,) = [record.message for record in caplog.records if "memory" in record.message]
    assert (
        line
        == "3 of 4 requests of a batch found no memory beside the others: computed again, one at a time"  # noqa: E501
    )


class Greedy(torch.nn.Module):
    """A network that really allocates a pebibyte."""

    def forward(self, inputs):
        return torch.empty(2**50, dtype=torch.uint8)


def test_handle_without_memory_for_it_alone_is_out_of_memory(tiny_model, two_threads):
    handler = handler_of(Greedy(), two_threads, tiny_model)
    responses = handled(
        handler, tiny_model, raw(encoded(noise(9, 9))), raw(b"x"), raw(encoded(noise(9, 9)))
    )
    assert [status for _, status, *_ in responses] == [507, 415, 507]


def test_handle_empty_batch_gives_an_empty_list(loaded, tiny_model):
    context = worker_context(tiny_model)
    context.request_processor = []
    assert loaded.handle([], context) == []


def test_handle_lone_surrogate_in_json_hurts_no_neighbour(loaded, tiny_model):
    bad, good = handled(
        loaded,
        tiny_model,
        raw(b'{"data": "AAAA", "\\ud800": 1}', "application/json"),
        raw(encoded(noise(9, 9))),
    )
    assert (bad[1], good[1]) == (400, 200)


@pytest.mark.parametrize("value", ["True", "true"])
def test_handle_describe_request_describes(loaded, tiny_model, value):
    ((body, status, media_type, _),) = handled(loaded, tiny_model, Request((), {"describe": value}))
    assert (status, media_type) == (200, "application/json")
    assert [info["label"] for info in json.loads(body)["classes"]] == ["background", "cat", "dog"]


def test_handle_describe_row_of_torchserve_is_empty():
    context = worker_context("/")
    assert received_by(context, Request((), {"describe": "True"})) == [{}]


@pytest.mark.parametrize("name", ["describe", "explain"])
def test_handle_client_that_sends_torchserve_headers_gets_its_segmentation(
    loaded, tiny_model, name
):
    ((body, status, *_),) = handled(loaded, tiny_model, raw(encoded(noise(9, 9)), **{name: "True"}))
    assert status == 200
    assert json.loads(body)["mask"]["encoding"] == "dense"


def test_handle_form_part_named_describe_is_an_unknown_option(loaded, tiny_model):
    parts = Part(encoded(noise(9, 9)), "data"), Part(b"True", "describe")
    ((body, status, *_),) = handled(loaded, tiny_model, form(*parts))
    assert status == 400
    assert "unknown option 'describe'" in json.loads(body)["error"]["message"]


# What TorchServe requires of the module


def test_module_defines_exactly_one_class_and_no_handle():
    classes = [member for _, member in inspect.getmembers(handler_module, inspect.isclass)]
    assert [member for member in classes if member.__module__ == handler_module.__name__] == [
        DeepLabHandler
    ]
    assert not hasattr(handler_module, "handle")


# Loading


@pytest.fixture
def copied_model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def rejection(folder, config=None) -> str:
    with pytest.raises(RuntimeError, match=r"^cannot serve this archive: ") as caught:
        DeepLabHandler().initialize(worker_context(folder, config))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return message


def rewrite_record(folder, change) -> None:
    document = yaml.safe_load((folder / RECORD_FILE).read_text())
    change(document)
    (folder / RECORD_FILE).write_text(yaml.safe_dump(document))


def test_initialize_other_weights_than_recorded_raises_one_line(copied_model):
    weights = copied_model / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert re.search(
        r"weights.safetensors: SHA-256 is [0-9a-f]{64}, the record says [0-9a-f]{64}",
        rejection(copied_model),
    )


def test_initialize_missing_weights_raises_one_line(copied_model):
    (copied_model / "weights.safetensors").unlink()
    assert "weights.safetensors: the weights are missing" in rejection(copied_model)


def test_initialize_record_without_weights_raises_one_line(copied_model):
    rewrite_record(copied_model, lambda document: document.pop("weights"))
    assert "tiny: the record names no weights: train the model first" in rejection(copied_model)


def test_initialize_weights_that_are_no_safetensors_raises_one_line(copied_model):
    weights = copied_model / "weights.safetensors"
    weights.write_bytes(b"\xff" * 99)
    rewrite_record(
        copied_model, lambda document: document["weights"].update(sha256=sha256_of(weights))
    )
    assert "weights.safetensors: not a safetensors file" in rejection(copied_model)


def test_initialize_unknown_key_in_record_raises_one_line(copied_model):
    rewrite_record(copied_model, lambda document: document["input"].update(colour="rgb"))
    assert "model.yaml: input.colour: unknown key" in rejection(copied_model)


def test_initialize_one_class_too_few_raises_one_line(copied_model):
    rewrite_record(copied_model, lambda document: document["classes"].pop())
    message = rejection(copied_model)
    assert "weights do not fit the record in 2 tensors" in message
    assert re.search(r"head\S*bias: expected \(2,\), got \(3,\)", message)


def test_initialize_missing_label_raises_one_line(copied_model):
    rewrite_record(copied_model, lambda document: document["classes"][1].pop("label"))
    assert "model.yaml: classes.1.label: is missing" in rejection(copied_model)


def test_initialize_wrong_shape_raises_one_line(copied_model):
    rewrite_record(
        copied_model, lambda document: document["architecture"].update(aspp_out_channels=16)
    )
    assert re.search(
        r"do not fit the record in \d+ tensors; first: .*expected \(\d+.*got \(\d+",
        rejection(copied_model),
    )


def test_initialize_unknown_backbone_raises_one_line(copied_model):
    rewrite_record(
        copied_model, lambda document: document["architecture"].update(backbone="resnet51")
    )
    assert "backbone resnet51: timm cannot give its levels" in rejection(copied_model)


@pytest.mark.parametrize(
    "backbone", ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp", "../x"]
)
def test_initialize_backbone_from_elsewhere_raises_without_looking(copied_model, backbone):
    rewrite_record(
        copied_model, lambda document: document["architecture"].update(backbone=backbone)
    )
    assert "model.yaml: architecture.backbone: String should match pattern" in rejection(
        copied_model
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"minWorker": 1}, "model-config.yaml: minWorker: unknown key"),
        ({"handler": {"precison": "auto"}}, "model-config.yaml: handler.precison: unknown key"),
        (
            {"handler": {"threads": 0}},
            "model-config.yaml: handler.threads: Input should be greater than 0",
        ),
        (["handler"], "model-config.yaml: Input should be a valid dictionary"),
    ],
    ids=["unknown key", "unknown setting", "value out of bounds", "no mapping"],
)
def test_initialize_bad_settings_raise_one_line(tiny_model, config, named):
    assert named in rejection(tiny_model, config)


def test_initialize_folder_without_record_raises_one_line(tmp_path):
    assert "model.yaml: cannot be read" in rejection(tmp_path)


@pytest.fixture
def _no_warm_up(monkeypatch):
    """Threads of several tests' workers fight for the cores: a test that is not about it loads
    without warming up.
    """
    monkeypatch.setattr(Pipeline, "warm_up", lambda _pipeline: None)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_no_warm_up")
def test_initialize_without_settings_takes_defaults(tiny_model):
    context = worker_context(tiny_model)
    context.model_yaml_config = None  # what TorchServe reads from an empty file
    handler = DeepLabHandler()
    handler.initialize(context)
    assert handler._pipeline.settings == Settings()


@pytest.mark.parametrize("gpu", [None, -1], ids=str)
def test_initialize_without_gpu_serves_on_the_cpu(tiny_model, gpu):
    handler = DeepLabHandler()
    handler.initialize(worker_context(tiny_model, CONFIG, gpu=gpu))
    rows = received_by(context := worker_context(tiny_model), Request((), {"describe": "True"}))
    assert json.loads(handler.handle(rows, context)[0])["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_initialize_on_a_gpu_that_is_not_there_serves_on_the_cpu_with_one_warning(
    tiny_model, caplog
):
    handler = DeepLabHandler()
    with caplog.at_level(logging.INFO):
        handler.initialize(worker_context(tiny_model, CONFIG, gpu=0))
    rows = received_by(context := worker_context(tiny_model), Request((), {"describe": "True"}))
    assert json.loads(handler.handle(rows, context)[0])["device"] == "cpu"
    ours = [record for record in caplog.records if record.name.startswith(("segserve", "handler"))]
    (warning,) = [record.getMessage() for record in ours if record.levelno == logging.WARNING]
    assert warning.startswith("cuda:0 failed: the CPU computes from now on")
    assert "serving tiny on cpu in float32 by OpenVINO" in [record.getMessage() for record in ours]


def test_handle_reports_the_metrics_of_the_device_that_computes_now(
    loaded, tiny_model, monkeypatch
):
    reported = []
    monkeypatch.setattr(
        handler_module.Telemetry, "responded", lambda self, *_, **__: reported.append(self._device)
    )
    for name in ("cpu", "meta", "cpu"):
        monkeypatch.setattr(loaded._pipeline.segmenter, "device", torch.device(name))
        context = worker_context(tiny_model)
        context.request_processor = []
        loaded.handle([], context)
    assert reported == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"handler": {"threads": 2}}, 2),
        ({"maxWorkers": 10**4}, 1),
        ({}, available_cores()),
    ],
    ids=["as set", "more workers than cores", "one worker has every core"],
)
@pytest.mark.usefixtures("_no_warm_up")
def test_initialize_sets_the_threads_of_a_worker(tiny_model, config, expected):
    DeepLabHandler().initialize(worker_context(tiny_model, config))
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize("head", ["deeplabv3", "corenet", "multiscale"])
@pytest.mark.parametrize(
    "backbone", ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "mobilevit_xxs"]
)
def test_initialize_every_head_serves_in_bf16(tmp_path, head, backbone):
    architecture = Architecture(backbone=backbone, head=head, aspp_rates=(1,), aspp_out_channels=8)
    record = tiny_record(architecture=architecture)
    torch.manual_seed(0)
    export_weights(build_network(architecture, 3), record, tmp_path)
    handler = DeepLabHandler()
    handler.initialize(worker_context(tmp_path, {"handler": {"precision": "bf16", "threads": 1}}))
    ((body, status, *_),) = handled(handler, tmp_path, raw(encoded(noise(33, 47))))
    assert status == 200
    assert np.array(json.loads(body)["mask"]["data"]).shape == (33, 47)
