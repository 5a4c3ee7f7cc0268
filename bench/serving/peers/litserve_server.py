"""A LitServe server as in its documentation: base64 in JSON, one worker, one image at a time.

https://lightning.ai/docs/litserve
"""

import base64
import sys
from pathlib import Path

import litserve
import torch

from .processes import HOST
from .steps import STEPS, LabelMap

TIMEOUT_S = 300  # the default of 30 is too short for a large network with 32 clients


class SegmentationAPI(litserve.LitAPI):
    def __init__(self, model: Path, network: str) -> None:
        super().__init__()
        self._model, self._network = model, network

    def setup(self, device: str) -> None:
        self._steps = STEPS[self._network](self._model, torch.device(device))

    def decode_request(self, request: dict[str, str]) -> object:
        return self._steps.decode(base64.b64decode(request["image_data"]))

    def predict(self, image: object) -> LabelMap:
        return self._steps.predict(image)

    def encode_response(self, label_map: LabelMap) -> dict[str, str]:
        return {"image": base64.b64encode(self._steps.encode(label_map)).decode()}


def main(model: str, network: str, port: str) -> None:
    server = litserve.LitServer(SegmentationAPI(Path(model), network), timeout=TIMEOUT_S)
    server.run(host=HOST, port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
