"""What TorchServe's front end itself refuses, in its own words: a client need not know which server
it asks.
"""

import json


class RefusalError(Exception):
    """A request that reaches no handler."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = as_json({"code": status, "type": kind, "message": message})


def as_json(document: object) -> bytes:
    """JSON as TorchServe's front end writes it."""
    return f"{json.dumps(document, indent=2, ensure_ascii=False)}\n".encode(
        "utf-8", errors="replace"
    )


def bad_token(act: str = "Authorization") -> RefusalError:
    message = f"Token {act} failed. Token either incorrect, expired, or not provided correctly"
    return RefusalError(400, "InvalidKeyException", message)


def unknown_model(name: str) -> RefusalError:
    return RefusalError(404, "ModelNotFoundException", f"Model not found: {name}")


def unknown_version(name: str, version: str) -> RefusalError:
    message = f"Model version: {version} does not exist for model: {name}"
    return RefusalError(404, "ModelVersionNotFoundException", message)


def unknown_path() -> RefusalError:
    message = "Requested resource is not found, please refer to API document."
    return RefusalError(404, "ResourceNotFoundException", message)


def unknown_method() -> RefusalError:
    message = "Requested method is not allowed, please refer to API document."
    return RefusalError(405, "MethodNotAllowedException", message)
