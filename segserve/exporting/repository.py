"""The configuration files of model repositories: for Triton, and for OpenVINO Model Server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.files import write_whole
from ..runtime.record import ModelRecord

if TYPE_CHECKING:
    from .write import ExportFormat

_TRITON = """\
name: {name}
platform: "onnxruntime_onnx"
max_batch_size: 0  # pictures have different sizes, so each is a request of its own
input [{{ name: "image", data_type: TYPE_UINT8, dims: [ 1, -1, -1, 3 ] }}]
output [
  {{ name: "label_map", data_type: TYPE_UINT8, dims: [ 1, -1, -1 ] }}{more}
]
version_policy: {{ latest: {{ num_versions: 1 }} }}
instance_group [{{ kind: KIND_AUTO, count: 1 }}]
parameters: {{ key: "model_version", value: {{ string_value: {version} }} }}
"""
_PROBABILITIES = """,
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ 1, {classes}, -1, -1 ] }}"""


def write_configuration(
    record: ModelRecord, output: Path, kind: "ExportFormat", *, probabilities: bool
) -> None:
    """Writes the files beside `output/NAME/1/model.onnx`.

    Triton: `config.pbtxt` and `labels.txt`, by class id, in the model's folder. OpenVINO Model
    Server: `config.json` in `output`, for a repository that is mounted at /models.
    """
    folder = output / record.name
    write_whole(folder / "labels.txt", "".join(f"{label}\n" for label in record.labels))
    if kind == "triton":
        more = _PROBABILITIES.format(classes=len(record.classes)) if probabilities else ""
        text = _TRITON.format(
            name=json.dumps(record.name), version=json.dumps(record.version), more=more
        )
        write_whole(folder / "config.pbtxt", text)
        return
    model = {
        "name": record.name,
        "base_path": f"/models/{record.name}",
        "shape": {"image": "(1,-1,-1,3)"},
        "model_version_policy": {"latest": {"num_versions": 1}},
    }
    document = {"model_config_list": [{"config": model}]}
    write_whole(output / "config.json", json.dumps(document, indent=2) + "\n")
