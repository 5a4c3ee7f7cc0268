"""What a client gets of an image: the class of every pixel, and what can be made of it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.image import decode_image
from ..runtime.overlay import DEFAULT_OPACITY, draw_overlay
from .share import ClassShare

if TYPE_CHECKING:
    import supervision

    from .images import ImageInput


class _Painted(NamedTuple):
    label: str
    color: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one image. A notebook shows it as the picture with its classes laid over it.

    Attributes:
        label_map: uint8 (H, W), read-only: the class id of every pixel, of the upright image.
        classes: those present, background included, largest first.
        model: the name of the model that answered; `model_version` its version.
        palette: colours by class id, three bytes (R, G, B) each, of all classes that the model knows.
        image_file: the image as it was sent.
        confidence_map: uint8 (H, W), read-only: each pixel's top probability times 255; None where not asked for.
        timings_ms: what the server says its stages took: decode, preprocess, inference, encode. Empty over gRPC.
    """

    label_map: NDArray[np.uint8]
    classes: tuple[ClassShare, ...]
    model: str
    model_version: str
    palette: bytes = field(repr=False)
    image_file: bytes = field(repr=False)
    confidence_map: NDArray[np.uint8] | None = field(default=None, repr=False)
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        height_px, width_px = self.label_map.shape
        shares = ", ".join(f"{share.label} {share.fraction:.1%}" for share in self.classes)
        return f"<Segmentation {width_px} x {height_px} by {self.model} {self.model_version}: {shares}>"

    @cached_property
    def image(self) -> Image.Image:
        """The image itself, RGB, upright: of the label map's size. Decoded when it is first asked for.

        Raises:
            SegserveError: the file cannot be decoded here.
        """
        return Image.fromarray(decode_image(self.image_file, max_pixels=self.label_map.size))

    def to_image(self) -> Image.Image:
        """The label map as an indexed picture, mode P: pixel value = class id, palette = class colours."""
        picture = Image.fromarray(self.label_map)
        picture.putpalette(self.palette)
        return picture

    def overlay(self, *, opacity: float = DEFAULT_OPACITY) -> Image.Image:
        """The image with its classes laid over it and a legend, RGB. Background stays as it is.

        Args:
            opacity: of the colours, from 0 (the image alone) to 1.

        Raises:
            ValueError: an opacity outside 0..1.
        """
        shown = [share.id for share in self.classes]
        return draw_overlay(np.asarray(self.image), self.label_map, self._painted(), shown, opacity=opacity)

    def mask_of(self, label_or_id: str | int) -> NDArray[np.bool_]:
        """Where a class is, by its label or id: bool (H, W).

        Raises:
            KeyError: the image has no such class; the message names those it has.
        """
        mask: NDArray[np.bool_] = self.label_map == self._share_of(label_or_id).id
        return mask

    def polygons(self) -> dict[int, list[list[int]]]:
        """The outlines of every class present by its id, each [x0, y0, x1, y1, ...] in pixels, as COCO orders them."""
        from ..runtime.polygons import encode_polygons

        return encode_polygons(self.label_map, [share.id for share in self.classes])

    def to_coco(
        self, *, image_id: int | str, first_id: int = 1, category_ids: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO annotations, one a class present but the background, as `pycocotools.coco.COCO.loadRes` takes them.

        Args:
            image_id: the image's in the COCO document.
            first_id: the id of the first annotation; those that follow count on.
            category_ids: the document's category of each class id; by default the class id itself. Classes that it
                leaves out are left out.

        Returns:
            Annotations whose `segmentation` is run-length encoded (exact, and without trouble with holes), with `area`
            in pixels, `bbox` as [x, y, width, height] and the class's mean confidence as `score`.
        """
        from .coco import as_annotations

        return as_annotations(
            self.label_map, self.classes, image_id=image_id, first_id=first_id, category_ids=category_ids
        )

    def to_detections(self) -> "supervision.Detections":
        """One detection a class present but the background, its mask whole, for supervision's annotators and metrics.

        Raises:
            ImportError: supervision is not installed; the message says how to install it.
        """
        from .detections import as_detections

        return as_detections(self.label_map, self.classes)

    @classmethod
    def from_detections(cls, detections: "supervision.Detections", image: "ImageInput") -> Self:
        """The segmentation of the pixels under masks; what none covers is background, a later mask covers an earlier.

        Args:
            detections: with `mask` and `class_id`; labels from the data `class_name`, else made up from the ids.
            image: what was looked at.

        Raises:
            ValueError: detections without masks or class ids, class ids outside 1..255, or masks of another size than
                the image.
        """
        from .detections import from_detections

        return cls(model="", model_version="", **from_detections(detections, image))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _painted(self) -> list[_Painted]:
        """Every class of the palette by its id; the label is known of those present."""
        labels = {share.id: share.label for share in self.classes}
        colors = np.frombuffer(self.palette, np.uint8).reshape(-1, 3).tolist()
        return [
            _Painted(labels.get(class_id, ""), (red, green, blue)) for class_id, (red, green, blue) in enumerate(colors)
        ]

    def _share_of(self, label_or_id: str | int) -> ClassShare:
        for share in self.classes:
            if label_or_id in (share.label, share.id):
                return share
        present = ", ".join(f"{share.label!r} ({share.id})" for share in self.classes)
        raise KeyError(f"the image has no {label_or_id!r}; it has: {present}")
