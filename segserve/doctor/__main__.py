"""`python -m segserve.doctor`: `segserve doctor` with nothing but the standard library."""

import argparse
import sys
from collections.abc import Sequence

from . import as_json, as_lines, examine, status_of


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where there is a problem."""
    parser = argparse.ArgumentParser(
        "segserve doctor", description="Look for what keeps a server from working."
    )
    parser.add_argument(
        "--server", help="its address; by default the one that `segserve serve` left running here"
    )
    parser.add_argument(
        "--token", help="inference token; by default that server's, else $SEGSERVE_TOKEN"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    given = parser.parse_args(arguments)
    findings = list(examine(given.server, token=given.token))
    print((as_json if given.json else as_lines)(findings))  # noqa: T201 - what the command is for
    return status_of(findings)


if __name__ == "__main__":
    sys.exit(main())
