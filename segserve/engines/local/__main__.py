"""`python -m segserve.engines.local ARCHIVE...`, in a run folder: serves until SIGTERM.

Worker processes import this module again, under another name. So it imports nothing at that time.
"""

import sys

if __name__ == "__main__":
    from .serve import main

    sys.exit(main(sys.argv[1:]))
