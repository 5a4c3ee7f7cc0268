"""`segserve` and `python -m segserve`."""

import os
import sys

from .runtime.cores import bounded_spinning


def main() -> None:
    os.environ.update(bounded_spinning(os.environ))
    try:
        from .cli import app
    except ImportError as error:  # the installation is broken
        if sys.argv[1:2] != ["doctor"]:
            sys.exit(
                f"segserve: the installation is broken ({error}): `segserve doctor` says what to do"
            )
        from .doctor import as_lines, examine, status_of

        findings = list(examine())
        print(as_lines(findings))  # noqa: T201 - without the packages of the command line
        sys.exit(status_of(findings))
    except KeyboardInterrupt:  # the imports take a moment
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
