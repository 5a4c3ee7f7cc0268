"""`make demo`: two real photographs through a real server, from the archive to the pictures."""

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from .cli.bulk import image_table
from .client import SegmentationClient
from .engines import default_engine
from .gateway.background import Server

PHOTOGRAPHS = {"chelsea.png": "a cat", "astronaut.png": "a person"}


def sample_photograph(name: str) -> Path:
    """Where a photograph lies that the package scikit-image ships.

    Raises:
        FileNotFoundError: scikit-image is not installed.
    """
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the photographs come with scikit-image: pip install 'segserve[demo]'"
        )
    return Path(package.origin).parent / "data" / name


def run_demo(archive: Path, run_dir: Path, pictures: Path, console: Console) -> None:
    """Starts a server for the archive, segments the photographs, saves label maps and overlays,
    stops the server.

    Raises:
        ServerError: the server does not start.
        ClientError: its response is not a segmentation.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    with Server.start([archive], run_dir, engine=default_engine()) as server:
        console.print(f"a server is starting at {server.inference_url} ...")
        server.wait_ready()
        with SegmentationClient(
            server.inference_url, token=server.inference_token, model=archive.stem
        ) as client:
            for name in PHOTOGRAPHS:
                _segment(client, sample_photograph(name), pictures, console)
    console.print("The server is stopped. `make serve` starts one that stays.")


def _segment(
    client: SegmentationClient, photograph: Path, pictures: Path, console: Console
) -> None:
    segmentation = client.segment(photograph)
    height_px, width_px = segmentation.label_map.shape
    labels, overlay = (
        pictures / f"{photograph.stem}-{name}" for name in ("labels.png", "overlay.jpg")
    )
    segmentation.to_image().save(labels)
    segmentation.overlay().save(overlay, quality=90)

    title = f"{photograph.name} ({PHOTOGRAPHS[photograph.name]}), {width_px} x {height_px} pixels"
    console.print(image_table(segmentation.classes, title))
    console.print(f"label map: {labels}\noverlay:   {overlay}\n", soft_wrap=True)
