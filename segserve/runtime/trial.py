"""`python -m segserve.runtime.trial MAX_PIXELS < IMAGE`: decodes an image and nothing else; see `quarantine`."""

import resource
import sys
from contextlib import suppress

from .errors import SegserveError
from .image import decode_image

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(SegserveError, MemoryError):  # refusing an image is as good an end as decoding it
        decode_image(sys.stdin.buffer.read(), max_pixels=int(sys.argv[1]))
