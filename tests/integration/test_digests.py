"""Image digests change only on purpose, with a line in the changelog.

``digests/packageset`` is a frozen copy, since the labels of each image have the state of its package set. Record new digests with::

    RECORD_DIGESTS=1 .venv/bin/pytest tests/integration/test_digests.py
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.client import RegistryClient
from tests.support.nix import nix_environment
from tests.support.server import running_server

_HERE = Path(__file__).parent / "digests"
_RECORDED = _HERE / f"{platform.machine()}.json"

# Every package that builds, alone; then combinations that share layers or clash.
_NAMES = (
    *("ambiguous", "exact", "1password", "a", "ab", "anotherfile", "bashinteractive", "bc", "bottom"),
    *("bytenames", "c", "cacert", "camelcase", "clasha", "clashb", "clashfile", "clashpriority", "coreutils"),
    *("data", "diamond", "emptydirectory", "emptyfile", "error", "executables", "firstoutput", "greeting"),
    *("hardlinks", "haserror", "haskellpackages.pandoc", "hello", "iana-etc"),
    *("left", "longnames", "mainprogram", "many", "metathrows", "moreutils", "nano", "noisyevaluation"),
    *("nopackages", "onlyamd64", "outputs", "python3.11", "right", "selfreference", "singlefile", "symlinks"),
    *("tools", "users", "images.web", "images.other", "images.plain", "images.named", "images.sentence"),
    *(
        "arm64/hello",
        "shell",
        "shell/hello",
        "arm64/shell/tools",
        "left/right/many",
        "clasha/clashb/clashfile/users",
    ),
    "shell/hello/greeting/hardlinks/symlinks/executables/longnames/bytenames/outputs/selfreference/diamond/many",
)


# How layers are grouped does not depend on how they are compressed.
@pytest.mark.parametrize(
    ("compression", "budget"), [("gzip", "1"), ("gzip", "20"), ("gzip", "94"), ("zstd", "94")]
)
def test_digests_are_as_recorded(tmp_path: Path, compression: str, budget: str) -> None:
    # Outside any git work tree: a commit's date would become part of the image.
    package_set = shutil.copytree(_HERE / "packageset", tmp_path / "set")
    settings = nix_environment(tmp_path) | {
        "NIXERY_PKGS_PATH": str(package_set),
        "NIXERY_COMPRESSION": compression,
        "NIXERY_LAYER_BUDGET": budget,
    }
    with running_server(tmp_path / "server", settings) as server, ThreadPoolExecutor(4) as threads:
        found = dict(threads.map(lambda name: (name, _digest(server.client, name)), _NAMES))
    recorded = json.loads(_RECORDED.read_text()) if _RECORDED.exists() else {}
    key = f"{compression}, {budget} layers"
    if os.environ.get("RECORD_DIGESTS"):
        recorded[key] = found
        _RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert found == recorded.get(key), f"see {__name__} for how digests are recorded"


def _digest(client: RegistryClient, name: str) -> str:
    answer = client.manifest(name)
    return (
        answer.headers["docker-content-digest"]
        if answer.status == 200
        else f"{answer.status}: {answer.body!r}"
    )
