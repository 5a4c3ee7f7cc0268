"""The errors of a server: it cannot start or has ended, or its frontend rejects a request."""

import json


class ServerError(Exception):
    """A server cannot be configured, started or stopped. The message is one line."""


class FrontendError(Exception):
    """A request that reaches no handler. The response has the format of TorchServe's frontend."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = frontend_json({"code": status, "type": kind, "message": message})


def frontend_json(document: object) -> bytes:
    """JSON as TorchServe's frontend writes it."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", errors="replace")


class BadTokenError(FrontendError):
    """The token of a request is missing or wrong."""

    def __init__(self) -> None:
        message = (
            "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        )
        super().__init__(400, "InvalidKeyException", message)


def unknown_model(name: str) -> FrontendError:
    return FrontendError(404, "ModelNotFoundException", f"Model not found: {name}")


def unknown_version(name: str, version: str) -> FrontendError:
    message = f"Model version: {version} does not exist for model: {name}"
    return FrontendError(404, "ModelVersionNotFoundException", message)


def unknown_path() -> FrontendError:
    message = "Requested resource is not found, please refer to API document."
    return FrontendError(404, "ResourceNotFoundException", message)


def unknown_method() -> FrontendError:
    message = "Requested method is not allowed, please refer to API document."
    return FrontendError(405, "MethodNotAllowedException", message)
