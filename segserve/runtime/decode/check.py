"""`python -m segserve.runtime.decode.check MAX_PIXELS < IMAGE` decodes an image and ends; see
`quarantine`.
"""

import resource
import sys
from contextlib import suppress

from ..errors import SegserveError
from .image import decode_image

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(SegserveError, MemoryError):  # rejecting an image is not a crash
        decode_image(sys.stdin.buffer.read(), max_pixels=int(sys.argv[1]))
