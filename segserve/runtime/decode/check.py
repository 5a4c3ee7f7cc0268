"""`python -m segserve.runtime.decode.check DECLARED DECODED < IMAGE` decodes an image and ends; see
`quarantine`.
"""

import resource
import sys
from contextlib import suppress

from ..errors import SegserveError
from .image import decode_reduced
from .limits import PixelLimits

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(SegserveError, MemoryError):  # rejecting an image is not a crash
        limits = PixelLimits(*map(int, sys.argv[1:]))
        decode_reduced(sys.stdin.buffer.read(), limits=limits, needed=None)
