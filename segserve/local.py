"""Runs an archive's model in this process, without a server and without Java, and with the same
results.
"""

import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, Unpack

import torch

from .archive import config_of
from .client import ImageInput, Segmentation
from .client.images import as_image_file
from .client.reading import read_segmentation
from .client.reply import Reply, raise_for_error
from .client.request import JSON, AnswerOptions, ClassNames, as_fields, http_headers
from .runtime.errors import ModelError
from .runtime.inference.failover import load_segmenter
from .runtime.pipeline import Pipeline
from .runtime.record import read_yaml
from .runtime.settings import CONFIG_FILE, read_config


class LocalSegmenter:
    """Segments images like a server of the same model, byte for byte: with the same limits,
    defaults and errors.

    Thread-safe: it processes one image at a time, because the network already uses every core. It
        runs this package's
    code, not the archive's copy, so code from an archive is never executed.

    Args:
        model: an archive (`.mar`), or a model folder.
        device: for example `cpu` or `cuda:0`; by default the first GPU, else the CPU. If the GPU
            fails, the CPU replaces it, with a warning.

    Raises:
        ModelError: the model is missing or broken, or cannot be served.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        with opened_model(Path(model)) as (folder, config_file):
            settings = read_config(read_yaml(config_file)).handler
            on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._pipeline = Pipeline(
                load_segmenter(folder, device=on, settings=settings), settings
            )
        self._turn = threading.Lock()

    def segment(
        self,
        image: ImageInput,
        *,
        mode: str | None = None,
        tta: str | None = None,
        classes: ClassNames | None = None,
        threshold: float | None = None,
        confidence: bool = False,
    ) -> Segmentation:
        """Segments an image; see `SegmentationClient.segment` for the options.

        Raises:
            OSError: the image file cannot be read.
            TypeError: the input is not an `ImageInput`.
            ValueError: the array or the PIL image is not a supported image.
            RefusedError: a server would send this error response, with this status, code and
                message.
        """
        fields = as_fields(
            mask="png",
            mode=mode,
            tta=tta,
            classes=classes,
            threshold=threshold,
            confidence=confidence,
        )
        image_file = as_image_file(image)
        return read_segmentation(self._ask(image_file, JSON, fields), image_file)

    def answer(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[AnswerOptions]
    ) -> bytes:
        """Returns the response body of a server, in any media type and encoding. Raises as
        `segment`.
        """
        reply = self._ask(as_image_file(image), accept, as_fields(**options))
        raise_for_error(reply)
        return reply.body

    def _ask(self, image_file: bytes, accept: str, fields: dict[str, str]) -> Reply:
        with self._turn:
            answer = self._pipeline.answer({"body": image_file}, http_headers(accept, fields))
        return Reply(
            answer.status, answer.phrase, answer.body, {"server-timing": answer.server_timing}
        )

    def close(self) -> None:
        """Does nothing; exists for compatibility with the clients. Memory is freed with the
        object.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def opened_model(model: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the model folder and the configuration file of an archive or a model folder.

    The files of an archive are extracted to a temporary folder, which exists only within this
    context.

    Raises:
        ModelError: `model` is neither an archive nor a model folder.
    """
    if model.is_dir():
        yield model, config_of(model)
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
