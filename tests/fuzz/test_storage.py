"""Arbitrary bytes in the storage lead to no 500, and to no content that differs from its digest."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nixery.gc.records import CHECKS
from nixery.oci.digest import Digest
from tests.fuzz.application import LAYER_DIGEST, MANIFEST_DIGEST, NAME, application_under_test
from tests.fuzz.effort import examples
from tests.fuzz.test_application import check

_DIGESTS = [str(LAYER_DIGEST), str(MANIFEST_DIGEST), "sha256:0", "../../etc/passwd"]
_TEXTS = st.sampled_from([*_DIGESTS, NAME, "latest", "", "--option", "a\r\nb: c", "\ud800"]) | st.text()
_NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1])
_FIELDS = (
    "name",
    "tag",
    "digest",
    "size",
    "current",
    "next",
    "identity",
    "revision",
    "until",
    "created",
    "manifest",
)

# Records as an attacker might write them.
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_FIELDS) | st.text(), inner, max_size=6)
    ),
    max_leaves=12,
).map(lambda document: json.dumps(document).encode())

_CONTENTS = (
    _DOCUMENTS | st.binary(max_size=200) | st.sampled_from([b"", b"[" * 50_000, b"\n".join([b"0" * 64] * 50)])
)


@examples(200)
@given(st.sampled_from(sorted(CHECKS)), _CONTENTS)
def test_a_record_is_understood_or_torn(kind: str, content: bytes) -> None:
    assert CHECKS[kind](content) in {True, False}


@examples(60)
@given(_CONTENTS, _CONTENTS)
def test_responses_of_a_planted_storage(record: bytes, blob: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, application_under_test(Path(directory)) as application:
        urls = (
            "/v2/_catalog",
            f"/v2/{NAME}/tags/list",
            f"/v2/{NAME}/referrers/{MANIFEST_DIGEST}",
            f"/v2/{NAME}/manifests/{MANIFEST_DIGEST}",
            f"/v2/{NAME}/blobs/{LAYER_DIGEST}",
        )
        # Pins and leases included.
        application.request("GET", f"/v2/{NAME}/manifests/latest")
        referrer = Path(directory, "records", "referrers", MANIFEST_DIGEST.hex[:2], MANIFEST_DIGEST.hex * 2)
        referrer.parent.mkdir(parents=True)
        referrer.touch()
        for path in Path(directory).rglob("*"):
            if path.is_file() and {"records", "blobs"} & set(path.parts):
                path.unlink()
                path.write_bytes(record if "records" in path.parts else blob)
        for url in (*urls, f"/v2/{NAME}/manifests/1.0"):
            response = application.request("GET", url)
            check(response)
            if response.status == 200 and "sha256:" in url and "referrers" not in url:
                assert url.endswith(str(Digest.of(response.body)))
