"""A real S3-compatible server on this machine (moto), for the tests of object stores."""

import logging
import secrets
from functools import cache

import pytest


@cache
def server() -> str:
    """The endpoint of the one server of this process; it ends with the process."""
    moto = pytest.importorskip("moto.server", reason="object stores are tested where moto[server] is installed")
    pytest.importorskip("s3fs", reason="object stores are tested where s3fs is installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket of its own; every client finds the server by the environment alone."""
    # Clients are kept for the process, so the server stays the same for all tests.
    for name, value in {
        "AWS_ENDPOINT_URL": server(),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    name = f"lab-{secrets.token_hex(4)}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
    return f"s3://{name}"
