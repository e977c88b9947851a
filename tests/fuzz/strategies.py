"""Strategies for requests: valid ones, nearly valid ones, and noise."""

from __future__ import annotations

import re
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fuzz.grammar import LETTERS

HEX = "0123456789abcdef"

# Each of them has fooled a check somewhere: ends of lines and strings, path and query, percent signs; digits
# and letters to Python's \w and \d that are not in ASCII (Arabic-Indic 3, superscript 2, one half, full-width
# a, double-struck 0); letters that are ASCII once their case is folded (long s, Kelvin, dotted I).
_TRICKS = (
    *("\n", "\r", "\r\n", "\0", "\x7f", "\u2028", "\x85", "\ufeff", "\ufffd", " ", "\t", "+"),
    *("..", "/", "//", "/../", "/./", "\\", "?", "#", "%", "%2F", "%00", "%2e%2e", ":", "@", ";", "&", "="),
    *(
        "\u0663",
        "\xb2",
        "\xbd",
        "\uff41",
        "\U0001d7d8",
        "\u017f",
        "\u212a",
        "\u0130",
        "\xe9",
        "\xdf",
        "\U0001f404",
    ),
    *("A", "Z", "-", "_", "__", "___", ".", "$(id)", "${x}", "`id`", "'", '"', "''", "--help", "a" * 256),
)

components = st.from_regex(
    re.compile(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", re.ASCII), fullmatch=True
)
meta_packages = st.sampled_from(["shell", "arm64", "amd64"])
valid_names = st.lists(components | meta_packages, min_size=1, max_size=5).map("/".join)


@st.composite
def nearly(draw: st.DrawFn, valid: st.SearchStrategy[str]) -> str:
    """A valid text with one to three tricks in it, mostly at an end."""
    text = draw(valid)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([0, len(text)]) | st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(_TRICKS)) + text[place:]
    return text


# Decoded UTF-8 contains no surrogates.
noise = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
long_names = st.tuples(st.sampled_from(["a", "a/", "a-", "-", "a.b/"]), st.integers(50, 3000)).map(
    lambda parts: parts[0] * parts[1]
)
names = (
    valid_names
    | nearly(valid_names)
    | st.text(sorted(LETTERS | set("._-/")), max_size=20)
    | noise
    | long_names
)

valid_tags = st.from_regex(re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", re.ASCII), fullmatch=True)
digests = st.text(HEX, min_size=64, max_size=64).map("sha256:{}".format)
broken_digests = st.one_of(
    nearly(digests),
    st.tuples(
        st.sampled_from(["sha256", "sha512", "md5", "SHA256", ""]), st.text(HEX + "AZ\u0663", max_size=70)
    ).map(":".join),
)
references = valid_tags | nearly(valid_tags) | digests | broken_digests | noise


def paths(
    names: st.SearchStrategy[str] = names, references: st.SearchStrategy[str] = references
) -> st.SearchStrategy[str]:
    """Percent-decoded paths, mostly of the API."""
    resources = st.tuples(names, st.sampled_from(["manifests", "blobs", "referrers"]), references)
    ends = st.sampled_from(["", "", "", "/", "\n", "//"])
    known = st.one_of(
        resources.map(lambda parts: "/v2/{}/{}/{}".format(*parts)),
        names.map("/v2/{}/tags/list".format),
        st.sampled_from(["/v2", "/v2/", "/v2/_catalog", "/", "//v2//", "/v2//", "/v2/../v2/", "/V2/"]),
    )
    return st.one_of(st.tuples(known, ends).map("".join), nearly(known), noise.map("/v2/{}".format))


@st.composite
def request_targets(draw: st.DrawFn, decoded: st.SearchStrategy[str]) -> bytes:
    """Paths on the wire: encoded correctly, too much, too little or wrongly, with or without a query."""
    path = draw(decoded)
    safe = draw(st.sampled_from(["/", "/:", "", "/:@!$&'()*+,;=", "/?#%"]))
    target = quote(path, safe=safe).encode() if draw(st.integers(0, 5)) else path.encode()
    target = draw(st.sampled_from([b"", b"", b"", b"", b"http://example.org", b"//", b"%2F"])) + target
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(target)))
        trick = draw(
            st.sampled_from([b"%", b"%2F", b"%00", b"%0A", b"%FF", b"%C3%28", b"%zz", b"\xff", b"..", b"%2e"])
        )
        target = target[:place] + trick + target[place:]
    return target + draw(st.one_of(st.just(b""), query_strings.map(b"?".__add__)))


_parameters = st.tuples(
    st.sampled_from(["n", "last", "artifactType", "ns", "N", "", "digest"]),
    st.sampled_from(
        [
            "",
            "=",
            "=0",
            "=1",
            "=-1",
            "=1e3",
            "=\u0663",
            "=%D9%A3",
            "=99999999999999999999",
            "=1%0A",
            "=%FF",
            "=%",
            "=a=b",
        ]
    )
    | noise.map(quote).map("={}".format),
).map("".join)
query_strings = st.lists(_parameters, max_size=4).map("&".join).map(str.encode) | st.binary(max_size=20)

_entity_tags = st.sampled_from(["*", '"x"', 'W/"x"', '"', ",", "", '"a, b"']) | digests.map('"{}"'.format)
_positions = st.sampled_from(["", "0", "1", "9", "99999999999", "9" * 19, "9" * 40, "-1", "\xb2", "x", " 1"])
_ranges = st.one_of(
    st.tuples(_positions, _positions).map(lambda ends: "bytes={}-{}".format(*ends)),
    st.sampled_from(
        ["bytes=0-1,3-4", "bytes=", "bytes", "lines=1-2", "=", "bytes=--1", "BYTES=0-0", "bytes = 0-0", ""]
    ),
)
_media_types = st.lists(
    st.sampled_from(
        [
            "*/*",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.oci.image.manifest.v1+json;q=0",
            'text/html; charset="',
            ";",
            ",",
            "",
        ]
    ),
    max_size=4,
).map(", ".join)
_known_headers = st.one_of(
    st.tuples(st.just("Range"), _ranges),
    st.tuples(st.sampled_from(["If-None-Match", "If-Match", "If-Range"]), _entity_tags),
    st.tuples(st.just("Accept"), _media_types),
    st.tuples(st.just("Expect"), st.just("100-continue")),
    st.tuples(st.just("Upgrade"), st.sampled_from(["h2c", "websocket", "TLS/1.0", ""])),
    st.tuples(st.just("Content-Length"), st.sampled_from(["0", "5", "99999999999999999999", "-1", "x", ""])),
    st.tuples(st.just("Transfer-Encoding"), st.sampled_from(["chunked", "gzip", "chunked, chunked", ""])),
    st.tuples(st.just("Authorization"), st.sampled_from(["Basic eDp5", "Bearer x", "", "Basic \xff"])),
    st.tuples(st.just("Host"), st.sampled_from(["", "x:y:z", "[::1", "a b"])),
)
# As text, of which each character becomes a byte.
headers = st.lists(
    _known_headers
    | st.tuples(
        st.text("abcdefXYZ-_!~", min_size=1, max_size=10),
        st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40),
    ),
    max_size=6,
)

methods = st.sampled_from(
    [
        "GET",
        "GET",
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "TRACE",
        "CONNECT",
        "PRI",
        "get",
        "FOO",
    ]
) | st.text("ABCxyz!#$%&'*+-.^_`|~0", min_size=1, max_size=12)
