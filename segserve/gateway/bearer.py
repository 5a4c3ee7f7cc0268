"""Bearer tokens in the header `Authorization`."""

import secrets

_SCHEME = "Bearer "


def carries(authorization: str | None, token: str) -> bool:
    """Whether a header carries the token; how long the comparison takes does not tell how much of
    it is right.
    """
    given = authorization or ""
    # A header may hold any bytes, which arrive as surrogates where they are no UTF-8.
    return given.startswith(_SCHEME) and secrets.compare_digest(
        given.removeprefix(_SCHEME).encode("utf-8", "surrogateescape"), token.encode()
    )
