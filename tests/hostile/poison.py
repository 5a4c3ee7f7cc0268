"""An image at which a decoder crashes, for want of a file that crashes a real one: processes that
run `SOURCE` before they decode it end as they would in a decoder written in C."""

import zipfile
from pathlib import Path

from tests.unit.images import encoded, noise

POISON = encoded(noise(7, 13))

SOURCE = """
import ctypes
from PIL import ImageFile

def _load(image, load=ImageFile.ImageFile.load):
    if image.size == (13, 7):
        ctypes.string_at(0)
    return load(image)

ImageFile.ImageFile.load = _load
"""


def with_poison(archive: Path, target: Path) -> Path:
    """The same archive with a decoder that crashes."""
    decoder = "segserve/runtime/decode/image.py"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as poisoned:
        assert decoder in source.namelist()
        for name in source.namelist():
            content = source.read(name)
            poisoned.writestr(name, content + SOURCE.encode() if name == decoder else content)
    return target


def write_poisoned_start(folder: Path) -> Path:
    """A folder that makes every Python run `SOURCE` as it starts, where it is on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(SOURCE)
    return folder
