"""How unclear data is read."""

from dataclasses import dataclass

IGNORED = 255
"""The label of pixels that belong to no class. Training and evaluation leave them out."""


@dataclass(frozen=True)
class ReadOptions:
    """How data is read that can mean several things, or is broken.

    Attributes:
        ignore_id: the value of pixels to ignore in label images; None if there is none.
        crowds_as_objects: COCO annotations with `iscrowd` are objects, as CVAT exports masks;
            otherwise their pixels are ignored.
        skip_broken: images and annotations that cannot be read are left out and counted;
            otherwise they are errors.
    """

    ignore_id: int | None = IGNORED
    crowds_as_objects: bool = False
    skip_broken: bool = False


AS_USUAL = ReadOptions()
