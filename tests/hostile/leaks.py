"""What a response must not contain: paths, versions, addresses and traces of the program that made
it.
"""

import re

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?")  # what the client itself has sent
_LEAKS = re.compile(
    r"(?<![\w.])/(?:[\w.-]+/)+|Traceback|File \"|line \d+, in|\.py\b|0x[0-9a-f]{6,}|object "
    r"at|site-packages"
    r"|\b\d+\.\d+\.\d+\b|[Pp]illow|\bPIL\b|libtiff|libjpeg|libwebp|libpng|\btorch\b|java\.|io\.netty|org\.pytorch"
)


def leaks_of(message: str) -> list[str]:
    return _LEAKS.findall(_QUOTED.sub("''", message))
