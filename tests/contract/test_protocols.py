"""Clients of other projects read the same label map as the native API, from every engine."""

import base64
import io
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils
from huggingface_hub import InferenceClient, constants
from PIL import Image

from .conftest import Api

MODEL = "deeplabv3"


@pytest.fixture(scope="module")
def cat(photographs) -> bytes:
    return photographs["chelsea"]


@pytest.fixture(scope="module")
def pixels(cat) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(cat)).convert("RGB"))


@pytest.fixture(scope="module")
def native(api: Api, cat) -> np.ndarray:
    """The label map of the native API, uint8 (H, W)."""
    response = api.post(data=cat, headers={"Accept": "application/x-npy"})
    return np.load(io.BytesIO(response.content))


def infer(api: Api, document: object = None, *, model: str = MODEL, **body) -> requests.Response:
    given = {"json": document} if document is not None else body
    headers = {**api.headers, **given.pop("headers", {})}
    url = f"{api.inference_url}/v2/models/{model}/infer"
    return requests.post(url, headers=headers, timeout=120, **given)


def image_input(cat: bytes, **changes) -> dict:
    data = [base64.b64encode(cat).decode()]
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": data, **changes}


@pytest.fixture(scope="module")
def triton(api: Api) -> tritonclient.http.InferenceServerClient:
    """It writes into the headers that it is given."""
    return tritonclient.http.InferenceServerClient(api.inference_url.removeprefix("http://"))


@pytest.mark.parametrize("binary_output", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", ["BYTES", "UINT8", "UINT8 of four axes"])
def test_triton_client_gets_the_native_label_map(
    api, triton, cat, pixels, native, datatype, binary_output
):
    tensor = np.array([cat], object) if datatype == "BYTES" else pixels
    tensor = tensor[None] if "four" in datatype else tensor
    image = tritonclient.http.InferInput("image", tensor.shape, datatype[:5])
    image.set_data_from_numpy(tensor)
    outputs = [
        tritonclient.http.InferRequestedOutput(name, binary_data=binary_output)
        for name in ("label_map", "confidence")
    ]
    result = triton.infer(
        MODEL, [image], outputs=outputs, request_id="7", headers=dict(api.headers)
    )
    assert np.array_equal(result.as_numpy("label_map"), native[None])
    confidence = result.as_numpy("confidence")
    assert confidence.shape == (1, *native.shape)
    assert confidence.mean() > 128
    assert result.get_response()["id"] == "7"


def test_triton_client_without_outputs_gets_the_label_map(api, triton, pixels, native):
    image = tritonclient.http.InferInput("image", pixels.shape, "UINT8")
    image.set_data_from_numpy(pixels)
    result = triton.infer(MODEL, [image], headers=dict(api.headers))
    assert np.array_equal(result.as_numpy("label_map"), native[None])


def test_triton_client_sees_a_server_and_a_model_that_are_ready(api, triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(MODEL, headers=dict(api.headers))
    metadata = triton.get_model_metadata(MODEL, headers=dict(api.headers))
    assert metadata["versions"] == ["2.0"]
    assert [output["name"] for output in metadata["outputs"]] == ["label_map", "confidence"]
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert triton.is_model_ready(MODEL, "2.0", headers=dict(api.headers))
    assert not triton.is_model_ready("unknown", headers=dict(api.headers))


def test_infer_of_json_alone_gets_the_native_label_map(api, cat, pixels, native):
    nested = image_input(cat, datatype="UINT8", shape=list(pixels.shape), data=pixels.tolist())
    for tensor in (image_input(cat), nested):
        response = infer(api, {"inputs": [tensor]}).json()
        [output] = response["outputs"]
        assert (output["name"], output["datatype"]) == ("label_map", "UINT8")
        assert np.array_equal(np.reshape(output["data"], output["shape"])[0], native)


def test_infer_parameters_are_native_options(api, cat):
    response = infer(
        api, {"inputs": [image_input(cat)], "parameters": {"classes": "dog", "tta": "flip"}}
    )
    assert set(response.json()["outputs"][0]["data"]) == {0}


BAD = {
    "no inputs": {"inputs": None},
    "two images": lambda cat: {"inputs": [image_input(cat), image_input(cat)]},
    "name": lambda cat: {"inputs": [image_input(cat, name="picture")]},
    "datatype": lambda cat: {"inputs": [image_input(cat, datatype="FP32")]},
    "no datatype": lambda cat: {"inputs": [image_input(cat, datatype=None)]},
    "shape of BYTES": lambda cat: {"inputs": [image_input(cat, shape=[2])]},
    "shape of text": lambda cat: {"inputs": [image_input(cat, shape="1")]},
    "not base64": lambda cat: {"inputs": [image_input(cat, data=["?"])]},
    "numbers as BYTES": lambda cat: {"inputs": [image_input(cat, data=[1])]},
    "too few pixels": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[2, 2, 3], data=[1, 2])]
    },
    "pixels over 255": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[1, 1, 3], data=[1, 2, 256])]
    },
    "pixels of text": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[1, 1, 3], data=["a", "b", "c"])]
    },
    "ragged pixels": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[1, 2, 3], data=[[1, 2], [3]])]
    },
    "grey pixels": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[2, 2], data=[0] * 4)]
    },
    "no pixels": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[0, 2, 3], data=[])]
    },
    "two pictures of pixels": lambda cat: {
        "inputs": [image_input(cat, datatype="UINT8", shape=[2, 1, 1, 3], data=[0] * 6)]
    },
    "output": lambda cat: {"inputs": [image_input(cat)], "outputs": [{"name": "logits"}]},
    "outputs": lambda cat: {"inputs": [image_input(cat)], "outputs": "label_map"},
    "option": lambda cat: {"inputs": [image_input(cat)], "parameters": {"colour": "red"}},
    "name of an option": lambda cat: {"inputs": [image_input(cat)], "parameters": {"a b": 1}},
    "value of an option": lambda cat: {
        "inputs": [image_input(cat)],
        "parameters": {"tta": "x\r\n"},
    },
    "parameters": lambda cat: {"inputs": [image_input(cat)], "parameters": 5},
    "id": lambda cat: {"inputs": [image_input(cat)], "id": 5},
    "a list": [],
    "binary size without bytes": lambda cat: {
        "inputs": [image_input(cat, parameters={"binary_data_size": 3})]
    },
    "negative binary size": lambda cat: {
        "inputs": [image_input(cat, parameters={"binary_data_size": -3})]
    },
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD.keys())
def test_infer_of_a_bad_request_is_an_error_with_a_sentence(api, cat, document):
    response = infer(api, document(cat) if callable(document) else document)
    assert response.status_code == 400, response.text
    assert len(response.json()["error"]) > 10
    assert response.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("body", "json_length"),
    [
        (b"", None),
        (b"{", None),
        (b"{}", "999"),
        (b"{}", "-1"),
        (b"{}", "many"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}abc', "66"),
    ],
    ids=str,
)
def test_infer_of_bad_bytes_is_an_error_with_a_sentence(api, body, json_length):
    headers = {} if json_length is None else {"Inference-Header-Content-Length": json_length}
    response = infer(api, data=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]


def test_infer_of_no_image_has_the_native_status(api):
    text = base64.b64encode(b"text").decode()
    assert infer(api, {"inputs": [image_input(b"", data=[text])]}).status_code == 415
    assert infer(api, {"inputs": [image_input(b"")]}).status_code == 400


def test_unknown_model_or_version_is_404(api, cat):
    document = {"inputs": [image_input(cat)]}
    assert infer(api, document, model="unknown").status_code == 404
    response = infer(api, document, model=f"{MODEL}/versions/9.9")
    assert response.status_code == 404
    assert response.json()["error"]
    assert infer(api, document, model=f"{MODEL}/versions/2.0").status_code == 200


@pytest.mark.parametrize("path", [f"v2/models/{MODEL}/infer", f"hf/{MODEL}"])
def test_request_without_the_token_is_an_error(api, cat, path):
    response = requests.post(f"{api.inference_url}/{path}", data=cat, timeout=60)
    assert response.status_code == 400
    assert "Token" in response.json()["error"]


# gRPC


@pytest.fixture(scope="module")
def triton_grpc(grpc_address) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def bearer(api: Api) -> dict[str, str]:
    return {"authorization": api.headers["Authorization"]}


def grpc_input(tensor: np.ndarray, datatype: str, name: str = "image"):
    image = tritonclient.grpc.InferInput(name, tensor.shape, datatype)
    image.set_data_from_numpy(tensor)
    return image


@pytest.mark.parametrize("datatype", ["BYTES", "UINT8", "UINT8 of four axes"])
def test_triton_client_over_grpc_gets_the_native_label_map(
    triton_grpc, bearer, cat, pixels, native, datatype
):
    tensor = np.array([cat], object) if datatype == "BYTES" else pixels
    image = grpc_input(tensor[None] if "four" in datatype else tensor, datatype[:5])
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in ("label_map", "confidence")]
    result = triton_grpc.infer(MODEL, [image], outputs=outputs, request_id="7", headers=bearer)
    assert np.array_equal(result.as_numpy("label_map"), native[None])
    assert result.as_numpy("confidence").mean() > 128
    assert result.get_response().id == "7"


def test_triton_client_over_grpc_sees_what_is_ready(triton_grpc, bearer):
    assert triton_grpc.is_server_live()
    assert triton_grpc.is_server_ready()
    assert triton_grpc.is_model_ready(MODEL, headers=bearer)
    metadata = triton_grpc.get_model_metadata(MODEL, headers=bearer)
    assert list(metadata.versions) == ["2.0"]
    assert [output.name for output in metadata.outputs] == ["label_map", "confidence"]
    assert triton_grpc.get_server_metadata().name == "segserve"


def test_grpc_parameters_are_native_options(triton_grpc, bearer, pixels):
    image, parameters = grpc_input(pixels, "UINT8"), {"classes": "dog", "tta": "flip"}
    result = triton_grpc.infer(MODEL, [image], parameters=parameters, headers=bearer)
    assert not result.as_numpy("label_map").any()


BAD_CALLS = {
    "model": ({"model": "unknown"}, "NOT_FOUND"),
    "version": ({"version": "9.9"}, "NOT_FOUND"),
    "no image": ({"tensor": np.array([b"text"], object), "datatype": "BYTES"}, "INVALID_ARGUMENT"),
    "empty": ({"tensor": np.array([b""], object), "datatype": "BYTES"}, "INVALID_ARGUMENT"),
    "two": ({"tensor": np.array([b"a", b"b"], object), "datatype": "BYTES"}, "INVALID_ARGUMENT"),
    "shape": ({"tensor": np.zeros((4, 4), np.uint8)}, "INVALID_ARGUMENT"),
    "datatype": ({"tensor": np.zeros((1, 1, 3), np.float32), "datatype": "FP32"}, "INVALID"),
    "name": ({"name": "picture"}, "INVALID_ARGUMENT"),
    "option": ({"parameters": {"colour": "red"}}, "INVALID_ARGUMENT"),
    "line break": ({"parameters": {"tta": "flip\r\n"}}, "INVALID_ARGUMENT"),
    "no token": ({"headers": {}}, "UNAUTHENTICATED"),
    "wrong token": ({"headers": {"authorization": "Bearer wrong"}}, "UNAUTHENTICATED"),
}


@pytest.mark.parametrize(("changes", "code"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_grpc_call_that_is_bad_has_a_status_and_a_sentence(
    triton_grpc, bearer, pixels, changes, code
):
    given = {"tensor": pixels, "datatype": "UINT8", "name": "image", **changes}
    image = grpc_input(given["tensor"], given["datatype"], given["name"])
    with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
        triton_grpc.infer(
            given.get("model", MODEL),
            [image],
            model_version=given.get("version", ""),
            headers=given.get("headers", bearer),
            parameters=given.get("parameters"),
        )
    assert code in caught.value.status()
    assert len(caught.value.message()) > 10


def counted(server) -> dict[str, float]:
    """The gateway's predictions by status."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=60).text
    found = re.findall(r'^segserve_gateway_requests_total\{.*status="(\d+)".*\} (\S+)$', text, re.M)
    return {status: float(count) for status, count in found}


def test_grpc_calls_are_counted_and_logged(triton_grpc, server, bearer, pixels):
    before, image = counted(server), grpc_input(pixels, "UINT8")
    triton_grpc.infer(MODEL, [image], headers=bearer)
    with pytest.raises(tritonclient.utils.InferenceServerException):
        triton_grpc.infer("unknown", [image], headers=bearer)
    triton_grpc.is_server_ready()
    after = counted(server)
    assert {status: after[status] - before.get(status, 0) for status in ("200", "404")} == {
        "200": 1,
        "404": 1,
    }
    logged = [json.loads(line) for line in server.log_path.read_text().splitlines()[-20:]]
    calls = [each for each in logged if each.get("path", "").startswith("/inference.GRPC")]
    assert [(each["path"], each["status"], each["client"]) for each in calls[-2:]] == [
        ("/inference.GRPCInferenceService/ModelInfer", 200, "127.0.0.1"),
        ("/inference.GRPCInferenceService/ModelInfer", 404, "127.0.0.1"),
    ]


# Hugging Face


@pytest.fixture(scope="module")
def hugging_face(api: Api) -> Iterator[InferenceClient]:
    token = api.headers["Authorization"].removeprefix("Bearer ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)  # the server is on this machine
        yield InferenceClient(model=f"{api.inference_url}/hf/{MODEL}", token=token)


def test_hugging_face_client_gets_the_native_label_map(hugging_face, cat, native):
    segments = hugging_face.image_segmentation(cat)
    assert [segment.label for segment in segments] == ["cat", "background"]
    assert segments[0].score > 0.9
    assert np.array_equal(np.array(segments[0].mask) == 255, native == 8)
    assert np.array_equal(np.array(segments[1].mask) == 255, native == 0)


def test_hugging_face_client_with_parameters(hugging_face, cat):
    segments = hugging_face.image_segmentation(cat, threshold=0.95, subtask="semantic")
    assert [segment.label for segment in segments] == ["cat"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"data": b""}, 400),
        ({"data": b"text"}, 415),
        ({"json": {}}, 400),
        ({"json": []}, 400),
        ({"json": {"inputs": "?"}}, 400),
        ({"json": {"inputs": "aGFsbG8="}}, 415),
        ({"json": {"inputs": "aGFsbG8=", "parameters": 5}}, 400),
        ({"json": {"inputs": "aGFsbG8=", "parameters": {"subtask": "panoptic"}}}, 400),
        ({"json": {"inputs": "aGFsbG8=", "parameters": {"mask_threshold": 0.5}}}, 400),
        ({"json": {"inputs": "aGFsbG8=", "parameters": {"threshold": "high"}}}, 400),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
    ],
    ids=str,
)
def test_hugging_face_bad_request_is_an_error_with_a_sentence(api, body, status):
    headers = {**api.headers, **body.pop("headers", {})}
    response = requests.post(f"{api.inference_url}/hf/{MODEL}", headers=headers, timeout=60, **body)
    assert response.status_code == status, response.text
    assert len(response.json()["error"]) > 10
