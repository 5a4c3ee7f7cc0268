"""Regenerates the stubs of inference.proto: `python -m segserve.client.torchserve`. Needs
grpcio-tools.
"""

import sys
from importlib.resources import files
from pathlib import Path

# Relative to the project's root, so that the imports are absolute.
PROTO = "segserve/client/torchserve/inference.proto"
_ROOT = Path(__file__).parents[3]


def generate(output: Path) -> None:
    """Writes the stubs to the folder `output`, at the paths of their modules.

    Raises:
        RuntimeError: the proto file is invalid.
    """
    from grpc_tools import protoc

    included = files("grpc_tools") / "_proto"
    arguments = [
        f"--proto_path={_ROOT}",
        f"--proto_path={included}",
        f"--python_out={output}",
        f"--pyi_out={output}",
    ]
    if protoc.main(["protoc", *arguments, f"--grpc_python_out={output}", PROTO]):
        raise RuntimeError(f"protoc cannot compile {PROTO}; its messages are above")


if __name__ == "__main__":
    generate(_ROOT)
    sys.exit()
