"""What is wrong with a data set, told all at once."""

_LISTED = 50


class DataError(ValueError):
    """A data set that cannot be used; every problem names the file it is about.

    The message is the problem where there is one. Several stand on a line each below the first,
    which counts them; of many, the first 50 stand there.

    Attributes:
        problems: all of them, one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(problems[0] if len(problems) == 1 else _listed(problems))
        self.problems = problems


def _listed(problems: tuple[str, ...]) -> str:
    lines = [f"{len(problems)} problems with the data:", *problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"and {len(problems) - _LISTED} more")
    return "\n  ".join(lines)
