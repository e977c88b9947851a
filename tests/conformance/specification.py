"""The requirements on a server: of the distribution specification 1.1, and of the HTTP that it refers to.

Some are shortened. Sentences about pushing, and about the descriptors in a list of referrers, are left out:
testing them requires pushing.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

# Section "Error Codes", those of uploads included.
ERROR_CODES = frozenset(
    {
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DENIED",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "TOOMANYREQUESTS",
        "UNAUTHORIZED",
        "UNSUPPORTED",
    }
)


class _Text(NamedTuple):
    level: str
    section: str
    text: str


class Sentence(Enum):
    """A sentence, with its level (MUST, SHOULD or MAY) and its section."""

    SUPPORT = _Text(
        "MUST",
        "Determining Support",
        "If the response is `200 OK`, then the registry implements this specification. (Endpoints: or `401`.)",
    )

    MANIFEST_FOUND = _Text(
        "MUST",
        "Pulling manifests",
        "A GET request to an existing manifest URL MUST provide the expected manifest, with a response code that MUST be `200 OK`.",
    )
    MANIFEST_TYPE = _Text(
        "SHOULD",
        "Pulling manifests",
        "The `Content-Type` header SHOULD match what the client pushed as the manifest's `Content-Type`.",
    )
    MANIFEST_TYPE_BARE = _Text(
        "SHOULD",
        "Pulling manifests",
        "The registry SHOULD NOT include parameters on the `Content-Type` header.",
    )
    MANIFEST_DIGEST = _Text(
        "SHOULD",
        "Pulling manifests",
        "A successful response SHOULD contain the digest of the uploaded blob in the header `Docker-Content-Digest`.",
    )
    MANIFEST_MISSING = _Text(
        "MUST",
        "Pulling manifests",
        "If the manifest is not found in the repository, the response code MUST be `404 Not Found`.",
    )

    BLOB_FOUND = _Text(
        "MUST",
        "Pulling blobs",
        "A GET request to an existing blob URL MUST provide the expected blob, with a response code that MUST be `200 OK`.",
    )
    BLOB_DIGEST = _Text(
        "SHOULD",
        "Pulling blobs",
        "A successful response SHOULD contain the digest of the uploaded blob in the header `Docker-Content-Digest`. "
        "If present, the value of this header MUST be a digest matching that of the response body.",
    )
    BLOB_MISSING = _Text(
        "MUST",
        "Pulling blobs",
        "If the blob is not found in the repository, the response code MUST be `404 Not Found`.",
    )
    BLOB_RANGE = _Text(
        "SHOULD",
        "Pulling blobs",
        "A registry SHOULD support the `Range` request header in accordance with RFC 9110.",
    )
    RANGE_UNSATISFIABLE = _Text(
        "SHOULD",
        "RFC 9110, 15.5.17",
        "A server that generates a 416 response to a byte-range request SHOULD generate a Content-Range header field "
        "specifying the current length of the selected representation.",
    )
    RANGE_UNKNOWN_UNIT = _Text(
        "MUST",
        "RFC 9110, 14.2",
        "An origin server MUST ignore a Range header field that contains a range unit it does not understand.",
    )
    RANGE_INVALID = _Text(
        "MAY",
        "RFC 9110, 14.2",
        "A server that supports range requests MAY ignore or reject a Range header field that contains an invalid "
        "ranges-specifier.",
    )
    LENGTH = _Text(
        "MUST",
        "RFC 9112, 6.3",
        "If a valid Content-Length header field is present, its decimal value defines the expected message body length in "
        "octets. If the sender closes the connection before, the recipient MUST consider the message to be incomplete.",
    )
    NOT_MODIFIED = _Text(
        "MUST",
        "RFC 9110, 13.1.2",
        "If the condition evaluates to false, the origin server MUST respond with the 304 (Not Modified) status code if the "
        "request method is GET or HEAD.",
    )

    HEAD_FOUND = _Text(
        "MUST",
        "Checking if content exists in the registry",
        "A HEAD request to an existing blob or manifest URL MUST return `200 OK`.",
    )
    HEAD_DIGEST = _Text(
        "SHOULD",
        "Checking if content exists in the registry",
        "A successful response SHOULD contain the digest of the uploaded blob in the header `Docker-Content-Digest`.",
    )
    HEAD_LENGTH = _Text(
        "SHOULD",
        "Checking if content exists in the registry",
        "A successful response SHOULD contain the size in bytes of the uploaded blob in the header `Content-Length`.",
    )
    HEAD_MISSING = _Text(
        "MUST",
        "Checking if content exists in the registry",
        "If the blob or manifest is not found in the repository, the response code MUST be `404 Not Found`.",
    )

    TAGS_FOUND = _Text(
        "MUST",
        "Listing Tags",
        "Assuming a repository is found, this request MUST return a `200 OK` response code.",
    )
    TAGS_FORM = _Text(
        "MUST", "Listing Tags", "Upon success, the response MUST be a json body in the following format"
    )
    TAGS_ORDER = _Text("MUST", "Listing Tags", "If the list is not empty, the tags MUST be in lexical order.")
    TAGS_COUNT = _Text(
        "MUST",
        "Listing Tags",
        "The response MAY return fewer than `<int>` results, but only when the total number of tags is less than `<int>` or "
        "a `Link` header is provided. Otherwise, the response MUST include `<int>` results.",
    )
    TAGS_LINK = _Text(
        "MUST",
        "Listing Tags",
        'If included, the `Link` header MUST be set according to RFC5988 with the Relation Type `rel="next"`.',
    )
    TAGS_NONE = _Text(
        "MUST",
        "Listing Tags",
        "When `n` is zero, this endpoint MUST return an empty list, and MUST NOT include a `Link` header.",
    )
    TAGS_LAST = _Text(
        "MUST",
        "Listing Tags",
        "`<tagname>` will not be included in the results, but up to `<int>` tags *after* `<tagname>` will be returned. "
        "When using the `last` query parameter, the `n` parameter is OPTIONAL.",
    )
    TAGS_MISSING = _Text("MUST", "Endpoints", "end-8a, `/v2/<name>/tags/list`: failure is `404`.")

    REFERRERS_FOUND = _Text(
        "MUST",
        "Listing Referrers",
        "Assuming a repository is found, this request MUST return a `200 OK` response code. "
        "If the registry supports the referrers API, the registry MUST NOT return a `404 Not Found`.",
    )
    REFERRERS_INVALID = _Text(
        "MUST",
        "Listing Referrers",
        "If the request is invalid, such as a `<digest>` with an invalid syntax, a `400 Bad Request` MUST be returned.",
    )
    REFERRERS_FORM = _Text(
        "MUST",
        "Listing Referrers",
        "Upon success, the response MUST be a JSON body with an image index containing a list of descriptors. "
        "The `Content-Type` header MUST be set to `application/vnd.oci.image.index.v1+json`.",
    )
    REFERRERS_EMPTY = _Text(
        "MUST",
        "Listing Referrers",
        "If a query results in no matching referrers, an empty manifest list MUST be returned.",
    )
    REFERRERS_FILTER = _Text(
        "SHOULD",
        "Listing Referrers",
        "The registry SHOULD support filtering on `artifactType`. If filtering is requested and applied, the response MUST "
        "include a header `OCI-Filters-Applied: artifactType`.",
    )

    DELETE = _Text(
        "MUST",
        "Content Management",
        "If deletion is disabled, the registry MUST respond with either a `400 Bad Request` or a `405 Method Not Allowed`. "
        "(Endpoints: `404` for unknown content.)",
    )
    ERROR_FORM = _Text(
        "MUST",
        "Error Codes",
        "If the response body is in JSON format, it MUST have the following format. "
        "The `code` field MUST be one of the following.",
    )
    WARNINGS = _Text(
        "MUST",
        "Warnings",
        "If included, `Warning` headers MUST specify a `warn-code` of `299` and a `warn-agent` of `-`, and MUST NOT specify a "
        "`warn-date` value. A registry MUST NOT send more than 4096 bytes of warning data from all headers combined.",
    )

    def __str__(self) -> str:
        return f"{self.value.level} ({self.value.section}): {self.value.text}"
