"""The model of an archive in this process: no server, no Java, the same answers."""

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
from .client.reply import Reply, raise_for_refusal
from .client.request import JSON, AnswerOptions, ClassNames, as_fields, http_headers
from .runtime.errors import ModelError
from .runtime.failover import load_segmenter
from .runtime.pipeline import Pipeline
from .runtime.record import read_yaml
from .runtime.settings import CONFIG_FILE, read_config


class LocalSegmenter:
    """Answers as a server of the same model does, byte for byte: limits, defaults and refusals included.

    Safe to use from several threads at once, which take turns: the network itself uses every core. The code is that of
    this package and not the archive's copy, so that nothing out of an archive is ever executed.

    Args:
        model: an archive (`.mar`), or a model folder.
        device: such as `cpu` or `cuda:0`; by default the first GPU where there is one. Of a GPU that fails, the CPU
            takes the place, with a warning.

    Raises:
        ModelError: the model is missing or broken, or cannot be served.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        with opened_model(Path(model)) as (folder, config_file):
            settings = read_config(read_yaml(config_file)).handler
            on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._pipeline = Pipeline(load_segmenter(folder, device=on, settings=settings), settings)
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
        """The class of every pixel of an image; see `SegmentationClient.segment` for the options.

        Raises:
            OSError: the image's file cannot be read.
            ValueError: an array or a picture that is no image.
            RefusedError: what a server would refuse, with its status, code and message.
        """
        fields = as_fields(mask="png", mode=mode, tta=tta, classes=classes, threshold=threshold, confidence=confidence)
        image_file = as_image_file(image)
        return read_segmentation(self._ask(image_file, JSON, fields), image_file)

    def answer(self, image: ImageInput, accept: str = JSON, **options: Unpack[AnswerOptions]) -> bytes:
        """The body that a server would send, in any of its media types and encodings; errors as in `segment`."""
        reply = self._ask(as_image_file(image), accept, as_fields(**options))
        raise_for_refusal(reply)
        return reply.body

    def _ask(self, image_file: bytes, accept: str, fields: dict[str, str]) -> Reply:
        with self._turn:
            answer = self._pipeline.answer({"body": image_file}, http_headers(accept, fields))
        return Reply(answer.status, answer.phrase, answer.body, {"server-timing": answer.server_timing})

    def close(self) -> None:
        """For symmetry with the clients: memory is freed when the object goes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def opened_model(model: Path) -> Iterator[tuple[Path, Path]]:
    """The folder and the configuration of an archive, or of a model folder, for as long as it takes to load them.

    Raises:
        ModelError: it is neither.
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
            raise ModelError(f"{model}: expected an archive (.mar) or a model folder: {error}") from error
        yield folder, folder / CONFIG_FILE
