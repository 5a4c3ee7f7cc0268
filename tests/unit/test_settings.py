"""`model-config.yaml`: known keys only, in bounds, and in agreement with `config.properties`."""

import re

import pytest
import yaml

from segserve.runtime.errors import ModelError
from segserve.runtime.record import ResizeRule
from segserve.runtime.settings import ModelConfig, Settings, read_config
from segserve.schema.request import Options

from ..conftest import PROJECT

CONFIG_FILES = sorted((PROJECT / "model").glob("**/model-config.yaml"))


def max_response_size() -> int:
    properties = (PROJECT / "config.properties").read_text()
    return int(re.search(r"^max_response_size=(\d+)$", properties, re.MULTILINE).group(1))


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.parent.name)
def test_read_config_every_file_of_the_project_reads(path):
    assert isinstance(read_config(yaml.safe_load(path.read_text())), ModelConfig)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.parent.name)
def test_response_limit_is_that_of_torchserve(path):
    config = read_config(yaml.safe_load(path.read_text()))
    assert config.handler.max_response_bytes == max_response_size()


def test_config_files_hold_the_shared_one():
    assert PROJECT / "model" / "model-config.yaml" in CONFIG_FILES


def test_default_response_limit_never_passes_torchserve_own():
    assert Settings().max_response_bytes == 6_553_500  # TorchServe 0.12: ConfigManager's default


@pytest.mark.parametrize("content", [None, {}], ids=["none", "empty"])
def test_read_config_without_content_gives_defaults(content):
    assert read_config(content) == ModelConfig()


def test_read_config_handler_section_is_read():
    config = read_config(
        {
            "minWorkers": 2,
            "maxWorkers": 2,
            "handler": {
                "precision": "fp32",
                "defaults": {"mask": "png", "tta": "flip"},
                "resize": {"size_px": 99},
                "max_cost": 7,
            },
        }
    )
    assert config.handler == Settings(
        precision="fp32",
        defaults=Options(mask="png", tta="flip"),
        resize=ResizeRule(size_px=99),
        max_cost=7,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"batchsize": 1}, "batchsize: unknown key"),
        ({"handler": {"Precision": "auto"}}, "handler.Precision: unknown key"),
        ({"handler": {"defaults": {"masks": "png"}}}, "handler.defaults.masks: unknown key"),
        (
            {"handler": {"defaults": {"mask": "dots"}}},
            "handler.defaults.mask: .*'polygons' or 'none'",
        ),
        ({"handler": {"resize": {"side": "longer"}}}, "handler.resize.size_px: is missing"),
        (
            {"handler": {"precision": "fp16"}},
            "handler.precision: .*'auto', 'bf16', 'fp32' or 'int8'",
        ),
        ({"handler": {"threads": 0}}, "handler.threads: .*greater than 0"),
        (
            {"handler": {"max_image_pixels": 178_956_971}},
            "handler.max_image_pixels: .*less than or equal to 178956970",
        ),
        ({"handler": {"max_image_pixels": 0}}, "handler.max_image_pixels: .*greater than 0"),
        ({"handler": {"max_cost": 0}}, "handler.max_cost: .*greater than 0"),
        (
            {"handler": {"defaults": {"tta": "rotate"}}},
            "handler.defaults.tta: .*'none', 'flip' or 'multiscale'",
        ),
        ({"handler": {"max_response_bytes": -1}}, "handler.max_response_bytes: .*greater than 0"),
        ({"handler": None}, "handler: .*valid dictionary"),
        ({"maxBatchDelay": 0}, "maxBatchDelay: .*greater than 0"),
        ({"minWorkers": 3, "maxWorkers": 2}, "minWorkers is 3, above maxWorkers, which is 2"),
        ({"minWorkers": 3}, "minWorkers is 3, above maxWorkers, which is 1"),
        ({"clientTimeoutInMills": 5}, "clientTimeoutInMills: unknown key"),
        ({"asyncCommunication": True}, "asyncCommunication: unknown key"),
        ([], "valid dictionary"),
        ("", "valid dictionary"),
        (5, "valid dictionary"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_read_config_broken_content_raises_one_line_that_names_the_key(content, message):
    with pytest.raises(ModelError, match=f"^model-config.yaml: .*{message}") as caught:
        read_config(content)
    assert "\n" not in str(caught.value)
