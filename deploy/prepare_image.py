"""Reduces the size and the start time of a container image. Run it once, at the end of a build.

    python prepare_image.py ARCHIVE LIBRARIES

It removes unused files. It copies Netty's native library to the folder LIBRARIES, because Netty
would extract it to a folder that forbids execution. It segments one image with the archive, so that
Python compiles exactly the modules that serving imports. A read-only image cannot store compiled
modules later.
"""

import contextlib
import io
import platform
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

SITE = Path(sysconfig.get_path("purelib"))
UNUSED = (
    "hf_xet*",
    *(f"{package}/**/tests" for package in ("mpmath", "networkx", "numpy", "sympy")),
)
NETTY = "META-INF/native/libnetty_transport_native_epoll_{}.so"
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch_64"}  # Python's name, Netty's


def main() -> None:
    archive, libraries = map(Path, sys.argv[1:])
    for pattern in UNUSED:
        for folder in list(SITE.glob(pattern)):
            shutil.rmtree(folder)
    unpack_netty(libraries)
    if archive.exists():
        compile_by_use(archive)


def unpack_netty(libraries: Path) -> None:
    entry = NETTY.format(ARCHITECTURES[platform.machine()])
    libraries.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(SITE / "ts" / "frontend" / "model-server.jar") as jar:
        (libraries / Path(entry).name).write_bytes(jar.read(entry))


def compile_by_use(archive: Path) -> None:
    import segserve.engines.torchserve.engine
    import segserve.gateway.health
    import segserve.gateway.serve  # noqa: F401
    from segserve.runtime.inference.segmenter import Segmenter
    from segserve.runtime.pipeline import Pipeline
    from segserve.runtime.settings import Settings

    with contextlib.suppress(SystemExit):  # the module parses the command line
        import ts.model_service_worker  # noqa: F401
    picture = io.BytesIO()
    Image.new("RGB", (96, 64)).save(picture, "PNG")
    with TemporaryDirectory() as model, zipfile.ZipFile(archive) as content:
        content.extractall(model)
        pipeline = Pipeline(
            Segmenter.load(Path(model), device=torch.device("cpu"), settings=Settings()), Settings()
        )
    for mask in ("dense", "rle", "png", "polygons"):
        response = pipeline.respond(
            {"data": picture.getvalue(), "mask": mask.encode(), "confidence": b"true"}, {}
        )
        if response.status != 200:
            sys.exit(f"the archive fails: {response.body.decode()}")


if __name__ == "__main__":
    main()
