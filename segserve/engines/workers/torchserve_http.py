"""The gateway's functions that the workers' HTTP application uses: TorchServe's error responses
and the check of a bearer token.
"""

from ...gateway.bearer import carries
from ...gateway.torchserve_errors import (
    RefusalError,
    as_json,
    bad_token,
    unknown_method,
    unknown_model,
    unknown_path,
    unknown_version,
)

__all__ = [
    "RefusalError",
    "as_json",
    "bad_token",
    "carries",
    "unknown_method",
    "unknown_model",
    "unknown_path",
    "unknown_version",
]
