"""A server on FastAPI as its documentation shows it: an uploaded file, a plain function in the pool of threads.

https://fastapi.tiangolo.com/tutorial/request-files/
"""

import uvicorn
from fastapi import FastAPI, Response, UploadFile

from .device import first_device
from .processes import HOST
from .python_server import server_arguments
from .steps import STEPS


def main() -> None:
    arguments = server_arguments()
    steps = STEPS[arguments.network](arguments.model, first_device())
    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile) -> Response:
        label_map = steps.predict(steps.decode(file.file.read()))
        return Response(steps.encode(label_map), media_type="image/png")

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, host=HOST, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
