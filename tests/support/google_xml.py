"""Google's XML API, which the bucket client uses, in front of fake-gcs-server, which writes, copies and lists by the JSON API.

Of the XML API, fake-gcs-server implements reading (with ranges) and deleting. It refuses uploads, copies and
multipart uploads (400, ``invalid uploadType``), and its lists have no pages. This proxy keeps parts until
their upload is completed.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape, unescape

from tests.support.faulty_proxy import read_body
from tests.support.server import HOST
from tests.support.web_server import serving

_TIMEOUT = 60
_BOUNDARY = "nixery-part"

# Objects in a page of a list, as at Google.
_PAGE = "1000"

# The smallest size in bytes of all parts but the last.
_SMALLEST_PART = 5 * 1024 * 1024


@dataclass
class _Uploads:
    """Uploads in progress: parts by number, by upload id."""

    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@contextmanager
def google_xml_api(upstream: int) -> Iterator[int]:
    """Run the API on a free port in front of the server on another one."""

    class Handler(_Handler):
        upstream_port = upstream
        uploads = _Uploads()

    with serving(Handler) as port:
        yield port


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream_port: ClassVar[int]
    uploads: ClassVar[_Uploads]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class named it
        """Log nothing."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, name = unquote(url.path.lstrip("/")).partition("/")
        body = read_body(self)
        if self.command == "GET" and query.get("list-type") == "2":
            self._list(bucket, query)
        elif self.command == "POST" and "uploads" in query:
            upload = str(next(self.uploads.numbers))
            self.uploads.parts[upload] = {}
            self._answer_xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        elif (upload := query.get("uploadId", "")) and upload not in self.uploads.parts:
            self._answer(404)
        elif upload and self.command == "PUT":
            self.uploads.parts[upload][int(query["partNumber"])] = body
            self._answer(200, {"etag": _etag(body)})
        elif upload and self.command == "POST":
            self._complete(bucket, name, upload, body.decode())
        elif upload and self.command == "DELETE":
            del self.uploads.parts[upload]
            self._answer(204)
        elif self.command == "PUT" and (source := self.headers.get("x-goog-copy-source")):
            from_bucket, _, from_name = unquote(source).lstrip("/").partition("/")
            place = f"/rewriteTo/b/{bucket}/o/{quote(name, safe='')}"
            path = f"/storage/v1/b/{from_bucket}/o/{quote(from_name, safe='')}{place}"
            self._answer(self._ask("POST", path)[0].status)
        elif self.command == "PUT":
            self._write(bucket, name, body)
        else:
            headers = {"range": value} if (value := self.headers.get("range")) else {}
            response, content = self._ask(self.command, self.path, headers)
            self._answer(response.status, dict(response.getheaders()), content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 -- the base class named them

    def _write(self, bucket: str, name: str, content: bytes) -> bool:
        condition = self.headers.get("x-goog-if-generation-match")
        query = {"uploadType": "multipart", **({"ifGenerationMatch": condition} if condition else {})}
        kind = self.headers.get("content-type", "application/octet-stream")
        about = json.dumps({"name": name, "contentType": kind}).encode()
        between = f"--{_BOUNDARY}\r\ncontent-type: ".encode()
        body = b"%sapplication/json\r\n\r\n%s\r\n" % (between, about)
        body += b"%s%s\r\n\r\n%s\r\n--%s--\r\n" % (between, kind.encode(), content, _BOUNDARY.encode())
        headers = {"content-type": f"multipart/related; boundary={_BOUNDARY}"}
        response, answer = self._ask(
            "POST", f"/upload/storage/v1/b/{bucket}/o?{urlencode(query)}", headers, body
        )
        if response.status != http.client.OK:
            self._answer(response.status)
            return False
        if "uploadId" in self.path:
            self._answer_xml("CompleteMultipartUploadResult", f"<ETag>{json.loads(answer)['etag']}</ETag>")
        else:
            self._answer(200, {"etag": json.loads(answer)["etag"]})
        return True

    def _complete(self, bucket: str, name: str, upload: str, wanted: str) -> None:
        parts = self.uploads.parts[upload]
        contents = [parts.get(int(number), b"") for number in re.findall(r"<PartNumber>(\d+)<", wanted)]
        tags = [unescape(tag, {"&quot;": '"'}) for tag in re.findall(r"<ETag>(.*?)<", wanted)]
        too_small = any(len(content) < _SMALLEST_PART for content in contents[:-1])
        if not contents or too_small or tags != list(map(_etag, contents)):
            self._answer(400)
        elif self._write(bucket, name, b"".join(contents)):
            del self.uploads.parts[upload]

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        asked = {"prefix": query.get("prefix", ""), "maxResults": query.get("max-keys", _PAGE)}
        asked["pageToken"] = query.get("continuation-token", "")
        response, answer = self._ask("GET", f"/storage/v1/b/{bucket}/o?{urlencode(asked)}")
        if response.status != http.client.OK:
            self._answer(response.status)
            return
        page = json.loads(answer)
        after = query.get("start-after", "")
        listed = "".join(_contents(item) for item in page.get("items", []) if item["name"] > after)
        if token := page.get("nextPageToken"):
            listed += f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
        self._answer_xml("ListBucketResult", listed)

    def _ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(HOST, self.upstream_port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def _answer_xml(self, name: str, content: str) -> None:
        self._answer(200, {"content-type": "application/xml"}, f"<{name}>{content}</{name}>".encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response_only(status)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        given.pop("transfer-encoding", None)
        if status != http.client.NO_CONTENT:
            given.setdefault("content-length", str(len(content)))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _contents(item: dict[str, Any]) -> str:
    about = {"Key": item["name"], "LastModified": item["updated"], "ETag": item["etag"], "Size": item["size"]}
    return f"<Contents>{''.join(f'<{name}>{escape(value)}</{name}>' for name, value in about.items())}</Contents>"


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
