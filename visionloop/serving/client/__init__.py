"""The endpoint's clients: images in, labelled answers out, over KServe v2's gRPC; synchronous and asynchronous.

    with connect("http://endpoint:8000", "fashion") as client:
        print(client.predict(images)[0].label)

`Client` and `AsyncClient` differ in how they wait. All else is shared: what is sent (`messages`), what a call is made
of (`call`), when a request is tried again (`retry`), what is known of a model (`model`), what a
failure says (`failures`).
"""

from visionloop.serving.client.asynchronous import AsyncClient, connect_async
from visionloop.serving.client.failures import EndpointError
from visionloop.serving.client.files import Predicted, image_files, predict_files
from visionloop.serving.client.messages import Answer
from visionloop.serving.client.model import Model
from visionloop.serving.client.synchronous import Client, connect, open_client

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "EndpointError",
    "Model",
    "Predicted",
    "connect",
    "connect_async",
    "image_files",
    "open_client",
    "predict_files",
]
