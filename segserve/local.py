"""Runs an archive's model in this process, without a server, and with the same results."""

import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, Unpack

from .archive import config_of
from .client import ImageInput, Segmentation
from .client.request import (
    JSON,
    ResponseOptions,
    SegmentOptions,
    as_fields,
    as_image_file,
    http_headers,
)
from .client.response import HttpResponse, raise_for_error
from .fetch import model_named
from .resources import count_gpus
from .runtime.encode.response import Response, class_rows, error_response
from .runtime.errors import ModelError
from .runtime.inference import load_segmenter
from .runtime.pipeline import Pipeline, request_error
from .runtime.record import read_yaml
from .runtime.settings import CONFIG_FILE, Runtime, read_config
from .runtime.telemetry import RequestStats


class LocalSegmenter:
    """Segments images like a server of the same model: the same results, limits, defaults and
    errors.

    Thread-safe: it processes one image at a time, because the network already uses every core. It
    runs this package's code, not the archive's copy, so code from an archive is never executed.

    Args:
        model: an archive (`.mar`), a model folder, or the name of one in `model/`.
        device: for example `cpu` or `cuda:0`; by default the first GPU, else the CPU. If the GPU
            fails, the CPU replaces it, with a warning.
        runtime: `torch` or `onnx`; by default the model's setting, see `Settings.runtime`.

    Attributes:
        record: the model's record.

    Raises:
        ModelError: the model is missing or broken, or cannot be served.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        device = device or ("cuda" if count_gpus() else "cpu")
        changes = {} if runtime is None else {"runtime": runtime}
        self._pipeline = load_pipeline(model, device=device, **changes)
        self.record = self._pipeline.segmenter.record
        self._lock = threading.Lock()

    def segment(self, image: ImageInput, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Segments an image; see `SegmentationClient.segment` for the options.

        Raises:
            OSError, TypeError, ValueError: as `SegmentationClient.segment`.
            ResponseError: a server would send this error response, with this status, code and
                message. The limit of a response's size does not apply: there is no response body.
        """
        headers = http_headers(JSON, as_fields(mask="png", **options))
        image_file = as_image_file(image)
        stats = RequestStats()
        try:
            with self._lock:
                _, _, segmentation = self._pipeline.segment({"body": image_file}, headers, stats)
        except Exception as error:
            _raise_for_error(error_response(request_error(error)))
            raise
        with stats.timings.stage("encode"):
            classes = class_rows(segmentation, self.record)
        return Segmentation(
            label_map=segmentation.label_map,
            classes=classes,
            model=self.record.name,
            model_version=self.record.version,
            palette=self.record.palette,
            image_file=image_file,
            confidence_map=segmentation.confidence_map,
            timings_ms={stage: round(1000 * s, 2) for stage, s in stats.timings.seconds.items()},
        )

    def segment_raw(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[ResponseOptions]
    ) -> bytes:
        """Returns the response body of a server, in any media type and encoding. Raises as
        `segment`, and if the body is larger than the model's limit.
        """
        headers = http_headers(accept, as_fields(**options))
        image_file = as_image_file(image)
        with self._lock:
            response = self._pipeline.respond({"body": image_file}, headers)
        _raise_for_error(response)
        return response.body

    def close(self) -> None:
        """Does nothing; the clients have it too. Memory is freed with the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raise_for_error(response: Response) -> None:
    """Raises an error response as a client of a server would raise it."""
    raise_for_error(HttpResponse(response.status, response.phrase, response.body))


def load_pipeline(model: str | os.PathLike[str], *, device: str, **changes: object) -> Pipeline:
    """Loads a model; `changes` replace its settings. Raises as `LocalSegmenter`."""
    with open_model(model) as (folder, config_file):
        settings = read_config(read_yaml(config_file)).handler.model_copy(update=changes)
        segmenter = load_segmenter(
            folder, device=device, settings=settings, threads=settings.threads
        )
        return Pipeline(segmenter, settings)


@contextmanager
def open_model(model: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Yields the model folder and the configuration file of a model. An archive is extracted to a
    temporary folder, which exists only within this context. Raises as `LocalSegmenter`.
    """
    if not Path(model).is_file():
        try:
            folder = model_named(os.fspath(model))
        except FileNotFoundError as error:
            raise ModelError(str(error)) from error
        yield folder, config_of(folder)
        return
    with TemporaryDirectory(prefix="segserve-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(model) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ModelError(
                f"{model}: expected an archive (.mar) or a model folder: {error}"
            ) from error
        yield folder, folder / CONFIG_FILE
