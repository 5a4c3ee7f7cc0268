"""`segserve` and `python -m segserve`."""

import os
import sys

from .runtime.cores import bounded_spinning


def main() -> None:
    os.environ.update(bounded_spinning(os.environ))
    try:
        from .cli import app
    except ImportError as error:  # an installation that is not whole: what `segserve doctor` is for
        if sys.argv[1:2] != ["doctor"]:
            sys.exit(
                f"segserve: the installation is broken ({error}): `segserve doctor` says what to do"
            )
        from .doctor.__main__ import main as doctor

        sys.exit(doctor(sys.argv[2:]))
    except KeyboardInterrupt:  # while torch and its kin are being imported, which takes a second
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
