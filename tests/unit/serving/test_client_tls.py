"""`https://`: encrypted, and only to a server whose certificate is trusted. In processes of their own: gRPC reads the
trusted roots once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.grpc import service_pb2_grpc

from .endpoint import Said, _Service

ASK = """
import sys, numpy
from visionloop.serving.client import Client, Model, EndpointError
with Client(sys.argv[1], Model("p", (8, 8, 1), ("dark", "bright"), 4), most_tries=1) as client:
    try:
        print(client.predict(numpy.zeros((1, 8, 8, 1), numpy.uint8), deadline_seconds=10)[0].label)
    except EndpointError as error:
        print(error.code)
"""


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """Key and certificate of `localhost`, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    public = made.public_bytes(serialization.Encoding.PEM)
    (folder / "roots.pem").write_bytes(public)
    return private, public


def test_an_encrypted_endpoint_is_answered_when_it_is_trusted(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    answering = lambda asked: Said("stable", 1, np.array([[0.9, 0.1]], np.float32))  # noqa: E731
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(answering, None), server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([certificate(tmp_path)]))
    server.start()
    try:
        trusting = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem")}
        found = [
            said(f"{scheme}://localhost:{port}", env)
            for scheme, env in (
                ("https", trusting),
                ("https", dict(os.environ)),
                ("http", trusting),
            )
        ]
    finally:
        server.stop(None).wait(5)
    assert found == ["dark", "UNAVAILABLE", "UNAVAILABLE"]


def said(url: str, environ: dict[str, str]) -> str:
    ran = subprocess.run([sys.executable, "-c", ASK, url], env=environ, capture_output=True, text=True, check=True)
    return ran.stdout.strip()
