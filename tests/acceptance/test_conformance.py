"""The official conformance suite, of a registry with access rules: with a token for everyone, and with a user's."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.clients.client import COMMAND
from tests.acceptance.clients.logins import Credentials
from tests.acceptance.conftest import CONFORMANCE
from tests.acceptance.registry_with_access import PASSWORD, USER, Registry
from tests.support.server import clean_environment

# Its parts for registries that clients only pull from.
_PARTS = (
    "Tag listing",
    "Blob get",
    "Blob head",
    "Manifest get by digest",
    "Manifest get by tag",
    "Manifest head by digest",
    "Manifest head by tag",
    "Referrers",
    "Ping",
)
_PUSHING = ("PUSH", "BLOBS_DELETE", "MANIFESTS_DELETE", "TAGS_DELETE")


@pytest.mark.parametrize(("user", "name"), [("", "other"), (USER, "hello")], ids=["everyone", "user"])
def test_the_official_suite(access: Registry, tmp_path: Path, user: str, name: str) -> None:
    authorization = Credentials(USER, PASSWORD).authorization if user else None
    manifest = replace(access.server.client, authorization=authorization).manifest(name)
    digest = manifest.headers["docker-content-digest"]
    blobs = [one["digest"] for one in (manifest.json()["config"], *manifest.json()["layers"])]
    environment = {
        "OCI_REGISTRY": access.host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": name,
        "OCI_USERNAME": user,
        "OCI_PASSWORD": PASSWORD if user else "",
        "OCI_RESULTS_DIR": str(tmp_path / "results"),
        "OCI_RO_DATA_TAGS": "latest",
        "OCI_RO_DATA_MANIFESTS": digest,
        "OCI_RO_DATA_BLOBS": " ".join(blobs),
        "OCI_RO_DATA_REFERRERS": digest,
        **{f"OCI_API_{api}": "false" for api in _PUSHING},
    }
    # Its exit status says nothing: it ends with 0 if a test failed, and panics after the results of data that exist.
    done = subprocess.run(
        [str(CONFORMANCE)],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND,
        check=False,
        cwd=tmp_path,
    )
    results = dict(re.findall(r"^ +(\S[^.:]*)\.*: +(\w+)$", done.stdout, re.MULTILINE))
    assert {part: results.get(part) for part in _PARTS} == dict.fromkeys(_PARTS, "Pass"), done.stdout
    assert "OCI Conformance Result: Pass" in done.stdout, done.stdout
