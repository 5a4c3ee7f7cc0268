"""The archive's model: the check before a job, and the segmentation in a worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..local import opened_model
from ..runtime.classes import class_ids
from ..runtime.decode.image import Decoded, decode_reduced
from ..runtime.decode.quarantine import Quarantine
from ..runtime.inference.failover import load_segmenter
from ..runtime.inference.labels import LabelRule, Segmentation
from ..runtime.network.weights import load_network
from ..runtime.options import parse_options
from ..runtime.record import ModelRecord, read_record, read_yaml, sha256_of
from ..runtime.settings import Settings, read_config
from ..segment.errors import SegmentError


@dataclass(frozen=True)
class ArchiveFacts:
    """What a job needs to know about its archive, without the network."""

    sha256: str
    record: ModelRecord


def check_archive(archive: Path, options: Mapping[str, object]) -> ArchiveFacts:
    """Checks that the archive is complete, that its network loads, and that the options are valid
    for it.

    Raises:
        ModelError: the file is not an archive, or its weights do not match their record.
        SegmentError: the archive is a folder.
        BadOptionError: the model does not support the options.
    """
    if archive.is_dir():
        raise SegmentError(
            f"{archive}: expected an archive (.mar), got a folder: `segserve archive` packs it"
        )
    with opened_model(archive) as (folder, config_file):
        settings = read_config(read_yaml(config_file)).handler
        record = read_record(folder)
        load_network(record, folder)
    _rule(options, settings, record)
    return ArchiveFacts(sha256_of(archive), record)


class BatchModel:
    """Segments images as a server of the same archive does, but without a limit to the cost of an
    image.
    """

    def __init__(
        self, archive: Path, options: Mapping[str, object], *, device: torch.device
    ) -> None:
        with opened_model(archive) as (folder, config_file):
            self._settings = read_config(read_yaml(config_file)).handler
            self._segmenter = load_segmenter(folder, device=device, settings=self._settings)
        self._options = parse_options(options, self._settings.defaults)
        self._rule = _rule(options, self._settings, self.record)
        self._quarantine = Quarantine.in_temporary_folder()

    @property
    def record(self) -> ModelRecord:
        return self._segmenter.record

    def decode(self, content: bytes) -> Decoded:
        """Decodes an image file to the size that the network needs. Thread-safe. Raises as
        `decode_image`.
        """
        decode = self._quarantine.decode if self._quarantine else decode_reduced
        needed = partial(self._segmenter.needed_hw, mode=self._options.mode, tta=self._options.tta)
        return decode(content, max_pixels=self._settings.max_image_pixels, needed=needed)

    def hear_of_crashes(self) -> None:
        """Records the images that made other workers of this machine crash, so that this worker
        rejects them.
        """
        if self._quarantine:
            self._quarantine.sweep()

    def segment(self, image: Decoded) -> Segmentation:
        """Segments an image at its original size. Raises as `Segmenter.segment`."""
        options = self._options
        return self._segmenter.segment(
            image.rgb, mode=options.mode, tta=options.tta, rule=self._rule, size_hw=image.size_hw
        )


def _rule(options: Mapping[str, object], settings: Settings, record: ModelRecord) -> LabelRule:
    asked = parse_options(options, settings.defaults)
    return LabelRule(class_ids(asked.classes, record), asked.threshold)
