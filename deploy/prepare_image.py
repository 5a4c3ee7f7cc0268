"""Reduces the size and the start time of a container image. Run it once, at the end of a build.

    python prepare_image.py ARCHIVE [LIBRARIES]

It removes unused files. With TorchServe, it copies Netty's native library to the folder LIBRARIES,
because Netty would extract it to a folder that forbids execution. It segments one image with the
archive, so that Python compiles exactly the modules that serving imports. A read-only image cannot
store compiled modules later.
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

from PIL import Image

SITE = Path(sysconfig.get_path("purelib"))
UNUSED = (
    "hf_xet*",
    *(f"{package}/**/tests" for package in ("mpmath", "networkx", "numpy", "sympy")),
    *(f"{package}/**/*.pyi" for package in ("numpy", "openvino", "torch")),
    "numpy/_core/include",
    "openvino/include",
    "openvino/tools/benchmark",
    *(f"openvino/frontend/{read}" for read in ("jax", "paddle", "tensorflow")),
    "openvino/libs/cache.json",  # of GPU kernels
    *(f"openvino/libs/libopenvino_intel_{device}_*" for device in ("gpu", "npu")),
    *(f"openvino/libs/libopenvino_{device}_plugin*" for device in ("auto", "auto_batch", "hetero")),
    *(
        f"openvino/libs/libopenvino_{read}_frontend*"
        for read in ("gguf", "jax", "paddle", "tensor*")
    ),
)
UNUSED_WITHOUT_TORCH = ("openvino/frontend/pytorch", "openvino/libs/libopenvino_pytorch_frontend*")
NETTY = "META-INF/native/libnetty_transport_native_epoll_{}.so"
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch_64"}  # Python's name, Netty's


def main() -> None:
    archive, *libraries = map(Path, sys.argv[1:])
    has_torch = (SITE / "torch").exists()
    for pattern in UNUSED if has_torch else UNUSED + UNUSED_WITHOUT_TORCH:
        for path in list(SITE.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in libraries:
        unpack_netty(folder)
    if archive.exists():
        compile_by_use(archive)


def unpack_netty(libraries: Path) -> None:
    entry = NETTY.format(ARCHITECTURES[platform.machine()])
    libraries.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(SITE / "ts" / "frontend" / "model-server.jar") as jar:
        (libraries / Path(entry).name).write_bytes(jar.read(entry))


def compile_by_use(archive: Path) -> None:
    import segserve.engines.local
    import segserve.engines.torchserve
    import segserve.gateway.serve  # noqa: F401
    from segserve.runtime.inference import load_segmenter
    from segserve.runtime.pipeline import Pipeline
    from segserve.runtime.settings import Settings

    # The module parses the command line; without PyTorch there is no TorchServe.
    with contextlib.suppress(SystemExit, ModuleNotFoundError):
        import ts.model_service_worker  # noqa: F401
    picture = io.BytesIO()
    Image.new("RGB", (96, 64)).save(picture, "PNG")
    with TemporaryDirectory() as model, zipfile.ZipFile(archive) as content:
        content.extractall(model)
        segmenter = load_segmenter(Path(model), device="cpu", settings=Settings())
        pipeline = Pipeline(segmenter, Settings())
    for mask in ("dense", "rle", "png", "polygons"):
        response = pipeline.respond(
            {"data": picture.getvalue(), "mask": mask.encode(), "confidence": b"true"}, {}
        )
        if response.status != 200:
            sys.exit(f"the archive fails: {response.body.decode()}")


if __name__ == "__main__":
    main()
