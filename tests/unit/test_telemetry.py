"""What a worker reports about its requests, through TorchServe's metrics cache and log lines."""

import logging
import re

import pytest
import torch
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from segserve.engines.torchserve_process import torchserve_home, write_metrics_file
from segserve.runtime.encode.response import Response
from segserve.runtime.inference.labels import Quality
from segserve.runtime.metrics import OWN, Telemetry
from segserve.runtime.record import ClassInfo
from segserve.runtime.telemetry import Interval, RequestStats, Timings
from segserve.schema.request import MediaType

from .images import encoded, noise, smooth
from .tiny import tiny_record

CPU = "cpu"
STOCK = torchserve_home() / "ts" / "configs" / "metrics.yaml"

# How TorchServe's front end reads a line (org.pytorch.serve.metrics.Metric, 0.12.0).
LINE = re.compile(
    r"\[METRICS\]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)


@pytest.fixture
def server(tmp_path):
    """TorchServe's cache, as a worker makes it of the metrics file of `segserve serve`."""
    write_metrics_file(tmp_path / "metrics.yaml")
    cache = MetricsCacheYamlImpl(str(tmp_path / "metrics.yaml"))
    cache.initialize_cache()
    return cache


@pytest.fixture
def reported(caplog):
    """By name and labels without the model's, the values that were reported so far."""
    caplog.set_level(logging.INFO, logger="ts.metrics.caching_metric")

    def read() -> dict[tuple[str, ...], list[float]]:
        values: dict[tuple[str, ...], list[float]] = {}
        lines = [
            record.getMessage()
            for record in caplog.records
            if record.name == "ts.metrics.caching_metric"
        ]
        for line in lines:
            matched = LINE.fullmatch(line)
            assert matched, line
            names, labels = zip(
                *(dimension.split(":") for dimension in matched[4].split(",")), strict=True
            )
            assert names[:2] == ("model_name", "model_version")
            values.setdefault((matched[1], *labels[2:]), []).append(float(matched[3]))
        caplog.clear()
        return values

    return read


def telemetry(server, record=None, device=CPU) -> Telemetry:
    return Telemetry(record or tiny_record(), device, server)


def test_loaded_reports_the_start_the_memory_and_zeros_to_count_from(server, reported):
    telemetry(server).loaded()
    values = reported()
    memory = values.pop(("segserve_memory_bytes",))
    assert 2**24 < memory[0] < 2**40
    assert values == {
        ("segserve_worker_starts_total",): [1],
        ("segserve_background_only_total",): [0],
        **{("segserve_class_coverage_total", label): [0] for label in ("background", "cat", "dog")},
    }


def test_responded_reports_everything_of_a_request(server, reported):
    timings = Timings(
        [
            Interval("decode", 0.0, 0.25),
            Interval("inference", 1.0, 1.5),
            Interval("inference", 2.0, 2.25),
        ]
    )
    stats = RequestStats(timings, "rle", 1000, 2_500_000, Quality((0.75, 0.0, 0.25), 0.875, 0.5))
    telemetry(server).responded(
        [Response(b"12345", MediaType.JSON, stats=stats)], [{}], seconds=0.8125
    )
    values = reported()
    assert values.pop(("segserve_memory_bytes",))
    assert values == {
        ("segserve_batch_size",): [1],
        ("segserve_requests_total", "200", "rle", "none"): [1],
        ("segserve_request_seconds",): [0.8125],
        ("segserve_stage_seconds", "decode"): [0.25],
        ("segserve_stage_seconds", "inference"): [0.75],
        ("segserve_answer_bytes_total",): [5],
        ("segserve_image_bytes_total",): [1000],
        ("segserve_image_megapixels",): [2.5],
        ("segserve_confidence_ratio",): [0.875],
        ("segserve_entropy_ratio",): [0.5],
        ("segserve_class_coverage_total", "background"): [0.75],
        ("segserve_class_coverage_total", "dog"): [0.25],
    }


@pytest.mark.parametrize(
    ("row", "headers", "labels"),
    [
        ({"body": encoded(smooth(40, 60))}, {}, ("200", "dense", "none")),
        (
            {"body": encoded(smooth(40, 60))},
            {"X-Segment-Mask": "polygons"},
            ("200", "polygons", "none"),
        ),
        (
            {"body": encoded(smooth(40, 60))},
            {"Accept": "application/x-npy"},
            ("200", "application/x-npy", "none"),
        ),
        ({"body": b"text"}, {"Accept": "image/png"}, ("415", "image/png", "image_unsupported")),
        ({"body": encoded(noise(9, 9))[:60]}, {}, ("422", "dense", "image_truncated")),
        ({}, {}, ("400", "unread", "no_image")),
        ({"body": b"x"}, {"X-Segment-Mask": "dots"}, ("400", "unread", "bad_option")),
    ],
    ids=["dense", "polygons", "npy", "no image", "truncated", "empty", "bad option"],
)
def test_responded_counts_real_requests_by_status_encoding_and_error(
    tiny_pipeline, server, reported, row, headers, labels
):
    reply = tiny_pipeline.respond(row, headers)
    telemetry(server).responded([reply], [headers], seconds=0.1)
    values = reported()
    assert values[("segserve_requests_total", *labels)] == [1]
    assert values[("segserve_answer_bytes_total",)] == [len(reply.body)]
    was_segmented = labels[0] == "200"
    assert (("segserve_confidence_ratio",) in values) == was_segmented
    if was_segmented:
        shares = [
            value for key, (value,) in values.items() if key[0] == "segserve_class_coverage_total"
        ]
        assert sum(shares) == pytest.approx(1)
        assert values[("segserve_image_bytes_total",)] == [len(row["body"])]
        assert values[("segserve_image_megapixels",)] == [0.0024]


def test_responded_batch_is_reported_once_and_descriptions_are_not_counted(
    tiny_pipeline, server, reported
):
    row = {"body": encoded(smooth(40, 60))}
    responses = [
        tiny_pipeline.respond(row, {}),
        tiny_pipeline.describe(),
        tiny_pipeline.respond({"body": b"x"}, {}),
    ]
    telemetry(server).responded(responses, [{}, {}, {}], seconds=0.5)
    values = reported()
    assert values[("segserve_batch_size",)] == [2]
    assert values[("segserve_request_seconds",)] == [0.5, 0.5]
    assert len(values[("segserve_memory_bytes",)]) == 1
    telemetry(server).responded([tiny_pipeline.describe()], [{}], seconds=0.5)
    assert reported() == {}


def test_responded_all_background_is_counted(server, reported):
    stats = RequestStats(quality=Quality((1.0, 0.0, 0.0), 0.9, 0.1))
    telemetry(server).responded([Response(b"", MediaType.JSON, stats=stats)], [{}], seconds=0.1)
    assert reported()[("segserve_background_only_total",)] == [1]


def test_responded_values_without_a_number_are_left_out(server, reported):
    stats = RequestStats(quality=Quality((1.0, 0.0, 0.0), float("nan"), float("inf")))
    telemetry(server).responded([Response(b"", MediaType.JSON, stats=stats)], [{}], seconds=0.1)
    assert not {("segserve_confidence_ratio",), ("segserve_entropy_ratio",)} & reported().keys()


def test_labels_with_characters_of_torchserve_s_lines_are_made_safe(server, reported):
    classes = (
        ClassInfo(label="back|ground", color=(0, 0, 0)),
        ClassInfo(label="a:b,c#d e", color=(1, 1, 1)),
    )
    telemetry(server, tiny_record(classes=classes)).loaded()
    values = reported()
    assert ("segserve_class_coverage_total", "back_ground") in values
    assert ("segserve_class_coverage_total", "a_b_c_d e") in values


def test_server_with_torchserve_s_own_metrics_file_gets_no_metrics(tiny_pipeline, reported, caplog):
    stock = MetricsCacheYamlImpl(str(STOCK))
    stock.initialize_cache()
    reported_to = telemetry(stock)
    with caplog.at_level(logging.INFO, logger="segserve"):
        reported_to.loaded()
    assert "the server's metrics file names none of segserve's metrics" in caplog.text
    reported_to.responded([tiny_pipeline.respond({"body": b"x"}, {})], [{}], seconds=0.1)
    assert reported() == {}


def test_server_that_knows_a_metric_under_other_labels_does_not_get_it(server, reported):
    for of_a_kind in server.cache.values():
        if "segserve_stage_seconds" in of_a_kind:
            of_a_kind["segserve_stage_seconds"].dimension_names = ["model_name", "stage"]
    timings = Timings([Interval("decode", 0.0, 0.25)])
    telemetry(server).responded(
        [Response(b"", MediaType.JSON, stats=RequestStats(timings))], [{}], seconds=0.1
    )
    assert "segserve_stage_seconds" not in {name for name, *_ in reported()}


def test_server_cache_of_segserve_s_file_has_every_metric(server):
    named = {name for of_a_kind in server.cache.values() for name in of_a_kind}
    assert {metric.name for metric in OWN} | {"PredictionTime", "HandlerTime"} == named


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_loaded_on_a_gpu_reports_its_memory(server, reported):
    kept = torch.ones(2**20, device="cuda")
    telemetry(server, device=str(kept.device)).loaded()
    assert reported()[("segserve_gpu_memory_bytes", "0")][0] >= kept.nbytes
