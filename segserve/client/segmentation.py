"""The result of a client: the class of every pixel, with conversions to other formats."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.decode.image import decode_image
from ..runtime.encode.overlay import DEFAULT_OPACITY, draw_overlay
from .share import ClassShare

if TYPE_CHECKING:
    import supervision

    from .images import ImageInput


class _Painted(NamedTuple):
    label: str
    color: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image. Notebooks display it as an overlay.

    Attributes:
        label_map: uint8 (H, W), read-only: the class id of every pixel of the upright image.
        classes: the classes present, including background, largest first.
        model: the model's name.
        model_version: the model's version.
        palette: the colours of all of the model's classes, by class id: three bytes (R, G, B) each.
        image_file: the image file that was sent.
        confidence_map: uint8 (H, W), read-only: each pixel's top probability times 255; None if not
            requested.
        timings_ms: the server's time per stage: decode, preprocess, inference, encode. Empty over
            gRPC.
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
        return (
            f"<Segmentation {width_px} x {height_px} by {self.model} {self.model_version}: "
            f"{shares}>"
        )

    @cached_property
    def image(self) -> Image.Image:
        """The image: RGB, upright, with the label map's size. It is decoded at the first access.

        Raises:
            SegserveError: the file cannot be decoded on this machine.
        """
        return Image.fromarray(decode_image(self.image_file, max_pixels=self.label_map.size))

    def to_image(self) -> Image.Image:
        """The label map as an indexed image, mode P: pixel value = class id, palette = class
        colours.
        """
        picture = Image.fromarray(self.label_map)
        picture.putpalette(self.palette)
        return picture

    def overlay(self, *, opacity: float = DEFAULT_OPACITY) -> Image.Image:
        """The image with its classes in colour and a legend, RGB. Background pixels are unchanged.

        Args:
            opacity: opacity of the colours, from 0 (only the image) to 1.

        Raises:
            ValueError: the opacity is outside 0..1.
            SegserveError: as in `image`.
        """
        shown = [share.id for share in self.classes]
        return draw_overlay(
            np.asarray(self.image), self.label_map, self._painted(), shown, opacity=opacity
        )

    def mask_of(self, label_or_id: str | int) -> NDArray[np.bool_]:
        """The mask of a class, by its label or id: bool (H, W).

        Raises:
            KeyError: the class is not in the image; the message names the classes that are.
        """
        mask: NDArray[np.bool_] = self.label_map == self._share_of(label_or_id).id
        return mask

    def polygons(self) -> dict[int, list[list[int]]]:
        """The polygons of every class present, by class id: each [x0, y0, x1, y1, ...] in pixels,
        in COCO's order.
        """
        from ..runtime.encode.polygons import encode_polygons

        return encode_polygons(self.label_map, [share.id for share in self.classes])

    def to_coco(
        self,
        *,
        image_id: int | str,
        first_id: int = 1,
        category_ids: Mapping[int, int] | None = None,
    ) -> list[dict[str, Any]]:
        """COCO annotations for `pycocotools.coco.COCO.loadRes`: one per class present, except
        background.

        Args:
            image_id: the image's id in the COCO document.
            first_id: the id of the first annotation. The next annotations have consecutive ids.
            category_ids: the document's category id of each class id; by default the class id
                itself. Classes that are not in this mapping are omitted.

        Returns:
            Annotations whose `segmentation` is run-length encoded, because RLE is exact and
            supports holes. `area` is in pixels, `bbox` is [x, y, width, height], and `score` is the
            class's mean confidence.
        """
        from .coco import as_annotations

        return as_annotations(
            self.label_map,
            self.classes,
            image_id=image_id,
            first_id=first_id,
            category_ids=category_ids,
        )

    def to_detections(self) -> "supervision.Detections":
        """Detections for supervision's annotators and metrics: one per class present, except
        background.

        Each detection has the whole mask of its class.

        Raises:
            ImportError: supervision is not installed; the message says how to install it.
        """
        from .detections import as_detections

        return as_detections(self.label_map, self.classes)

    @classmethod
    def from_detections(cls, detections: "supervision.Detections", image: "ImageInput") -> Self:
        """Converts the masks of detections to a segmentation.

        Pixels outside all masks become background. Where masks overlap, the later mask wins.

        Args:
            detections: must have `mask` and `class_id`. Labels come from the data `class_name`;
                without it, they are generated from the ids.
            image: the image of the detections.

        Raises:
            ValueError: the detections have no masks or no class ids, a class id is outside 1..255,
                or a mask's size is not the image's size.
        """
        from .detections import from_detections

        return cls(model="", model_version="", **from_detections(detections, image))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _painted(self) -> list[_Painted]:
        """Every class of the palette, in order of id. Only classes present have a label."""
        labels = {share.id: share.label for share in self.classes}
        colors = np.frombuffer(self.palette, np.uint8).reshape(-1, 3).tolist()
        return [
            _Painted(labels.get(class_id, ""), (red, green, blue))
            for class_id, (red, green, blue) in enumerate(colors)
        ]

    def _share_of(self, label_or_id: str | int) -> ClassShare:
        for share in self.classes:
            if label_or_id in (share.label, share.id):
                return share
        present = ", ".join(f"{share.label!r} ({share.id})" for share in self.classes)
        raise KeyError(f"the image has no {label_or_id!r}; it has: {present}")
