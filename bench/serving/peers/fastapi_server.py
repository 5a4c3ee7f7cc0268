"""A FastAPI server as in its documentation: an uploaded file, and a synchronous function in the
thread pool.

https://fastapi.tiangolo.com/tutorial/request-files/
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response, UploadFile

from .processes import HOST
from .steps import STEPS, first_device


def main(model: str, network: str, port: str) -> None:
    steps = STEPS[network](Path(model), first_device())
    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile) -> Response:
        label_map = steps.predict(steps.decode(file.file.read()))
        return Response(steps.encode(label_map), media_type="image/png")

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, host=HOST, port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
