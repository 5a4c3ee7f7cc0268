"""An image at which a decoder crashes, for want of a file that crashes a real one: processes that run `SOURCE` before
they decode it end as they would in a decoder written in C."""

from pathlib import Path

from tests.unit.images import encoded, noise

POISON = encoded(noise(7, 13))

SOURCE = """
import os, signal
from PIL import ImageFile

def _load(image, load=ImageFile.ImageFile.load):
    if image.size == (13, 7):
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(image)

ImageFile.ImageFile.load = _load
"""


def write_poisoned_start(folder: Path) -> Path:
    """A folder that makes every Python run `SOURCE` as it starts, where it is on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(SOURCE)
    return folder
