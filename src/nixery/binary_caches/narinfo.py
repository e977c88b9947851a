"""narinfos: what a binary cache says of a store path, and whether a trusted key has signed it.

Sources: Nix manual, "Serving a Nix store via HTTP" and "Signing"; ``nar-info.cc``, ``path-info.cc`` and
``store-api.cc`` of Nix. A cache may be hostile, so everything here has a bound, and a narinfo is never used before
its signature or its content address is checked.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self, cast, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixery.closure import STORE_DIRECTORY, PathInfo, StorePath, decode_base32, encode_base32

# Bytes of a narinfo: some 15,000 references.
LARGEST_NARINFO = 1024 * 1024

Compression = Literal["none", "xz", "zstd", "bzip2", "gzip"]
_COMPRESSIONS = frozenset(get_args(Compression))

# A narinfo without the field was written by a Nix that knew nothing else.
_DEFAULT_COMPRESSION = "bzip2"

_MOST_SIGNATURES = 64


_SHA256 = 32
_BASE32_LENGTH = 52
_BASE64_LENGTH = 44
_STORE_HASH = 20

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
# Relative to the cache, so that no narinfo can send the server's credentials elsewhere. Without percent signs, which
# could hide a `..`.
_URL = re.compile(r"[A-Za-z0-9._~+=-]+(?:/[A-Za-z0-9._~+=-]+)*(?:\?[A-Za-z0-9._~+=&-]*)?", re.ASCII)
_LONGEST_URL = 1024
_KEY_NAME = re.compile(r"[^\s:]{1,200}")
_KNOWN = frozenset(
    {
        *("StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize"),
        *("References", "Deriver", "CA"),
    }
)


class Untrusted(ValueError):
    """A narinfo that is well-formed, but that no trusted key has signed."""


@dataclass(frozen=True, slots=True)
class NarInfo:
    """The checked narinfo of a store path.

    Attributes:
        info: the path, with NAR hash, NAR size and references; as Nix's database would have it.
        url: of the NAR, relative to the cache.
        compression: of the NAR.
        file_hash: SHA-256 of the compressed NAR in hexadecimal digits; ``None`` if the cache does not say. Nothing
            signs it.
        file_size: bytes of the compressed NAR; ``None`` if the cache does not say. Nothing signs it.
        cache: name of the binary cache, without secrets.
        content_address: such as ``fixed:r:sha256:<digits>``; empty for a path that is not content-addressed.
        flat_hash: SHA-256 in hexadecimal digits that the one file of the path must have, because nothing but its
            content address vouches for it; empty if a signature does.
        text: of the narinfo, as the cache wrote it; ``Trust.read`` makes the same object of it.
    """

    info: PathInfo
    url: str
    compression: Compression
    file_hash: str | None
    file_size: int | None
    cache: str
    content_address: str = ""
    flat_hash: str = ""
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """The rules by which narinfos are accepted.

    Attributes:
        keys: trusted public keys by their names.
        require_signatures: whether a path that is not content-addressed needs a signature of one of them.
    """

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    require_signatures: bool = True

    @classmethod
    def parse(cls, keys: str, *, require_signatures: bool = True) -> Self:
        """Read keys as in Nix's ``trusted-public-keys``.

        Raises:
            ValueError: one of them is not a public key.
        """
        return cls(dict(map(parse_public_key, keys.split())), require_signatures)

    def without_signatures(self) -> Trust:
        """Return the rules for a cache that the operator trusts without signatures."""
        return Trust(self.keys, require_signatures=False)

    def read(self, content: bytes, path: StorePath, cache: str) -> NarInfo:
        """Parse and check a narinfo.

        Takes about 0.2 ms for each signature of a trusted key.

        Args:
            content: of the narinfo.
            path: that the cache was asked for.
            cache: its name, for messages and records.

        Raises:
            Untrusted: it is unsigned, or its signatures are wrong or of unknown keys.
            ValueError: it is malformed, or is of another path.
        """
        fields, signatures = _fields(content)
        found = _parse(fields, path, cache, content.decode())
        if self._is_signed(found.info, signatures) or not self.require_signatures:
            return found
        flat_hash = _content_hash(found)
        if flat_hash is None:
            raise Untrusted(self._reason(signatures))
        return NarInfo(
            *(found.info, found.url, found.compression, found.file_hash, found.file_size, found.cache),
            *(found.content_address, flat_hash, found.text),
        )

    def _is_signed(self, info: PathInfo, signatures: list[tuple[str, bytes]]) -> bool:
        signed = fingerprint(info)
        for name, signature in signatures:
            if name in self.keys:
                try:
                    self.keys[name].verify(signature, signed)
                except InvalidSignature:
                    continue
                return True
        return False

    def _reason(self, signatures: list[tuple[str, bytes]]) -> str:
        if not signatures:
            return "it has no signature"
        wrong = [name for name, _ in signatures if name in self.keys]
        if wrong:
            return f"its signature of the key {wrong[0]} is wrong"
        names = ", ".join(sorted({name for name, _ in signatures})[:5])
        return f"it is signed by {names}, which trusted-public-keys does not have"


def fingerprint(info: PathInfo) -> bytes:
    """Return the text that a signature of a path info is made over (``ValidPathInfo::fingerprint`` in Nix)."""
    references = sorted((*info.references, *((info.path,) if info.refers_to_itself else ())))
    digits = encode_base32(bytes.fromhex(info.nar_hash))
    return f"1;{info.path};sha256:{digits};{info.nar_size};{','.join(map(str, references))}".encode()


def parse_public_key(text: str) -> tuple[str, Ed25519PublicKey]:
    """Parse ``<name>:<base 64>``.

    Raises:
        ValueError: it is not a public key.
    """
    name, _, digits = text.partition(":")
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(digits, validate=True))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a public key; expected <name>:<44 characters of base 64>"
        ) from None
    if _KEY_NAME.fullmatch(name) is None:
        raise ValueError(f"{text!r} is not a public key: it has no name")
    return name, key


def parse_sha256(text: str) -> str:
    """Parse a SHA-256 in one of Nix's notations: base 16, base 32, base 64; return hexadecimal digits.

    Raises:
        ValueError: it is none, or of another algorithm.
    """
    algorithm, _, digits = text.partition("-" if text.startswith("sha256-") else ":")
    content = b""
    with suppress(ValueError):  # binascii.Error is one
        if algorithm != "sha256":
            pass
        elif len(digits) == _BASE64_LENGTH:
            content = base64.b64decode(digits, validate=True)
        elif len(digits) == _BASE32_LENGTH:
            content = decode_base32(digits)
        elif re.fullmatch(r"[0-9a-f]+", digits):
            content = bytes.fromhex(digits)
    if len(content) != _SHA256:
        raise ValueError(f"{text[:100]!r} is not a SHA-256")
    return content.hex()


def _fields(content: bytes) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    if len(content) > LARGEST_NARINFO:
        raise ValueError(f"it has more than {LARGEST_NARINFO:,} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    fields: dict[str, str] = {}
    signatures: list[tuple[str, bytes]] = []
    for name, value in _lines(text):
        if name == "Sig":
            signatures.append(_signature(value))
        elif name in fields:
            raise ValueError(f"it has two fields {name}")
        elif name in _KNOWN:
            fields[name] = value
    if len(signatures) > _MOST_SIGNATURES:
        raise ValueError(f"it has more than {_MOST_SIGNATURES} signatures")
    return fields, signatures


def _lines(text: str) -> Iterator[tuple[str, str]]:
    if not text.endswith("\n"):
        raise ValueError("it is cut off")
    for line in text.removesuffix("\n").split("\n"):
        name, separator, value = line.partition(":")
        if not separator or value[:1] not in {"", " "} or not value.isprintable():
            raise ValueError(f"{line[:100]!r} is not a field")
        yield name, value[1:]


def _signature(text: str) -> tuple[str, bytes]:
    name, _, digits = text.partition(":")
    try:
        return name, base64.b64decode(digits, validate=True)
    except ValueError:
        raise ValueError(f"{text[:100]!r} is not a signature") from None


def _parse(fields: Mapping[str, str], path: StorePath, cache: str, text: str) -> NarInfo:
    for name in ("StorePath", "URL", "NarHash", "NarSize"):
        if not fields.get(name):
            raise ValueError(f"it has no field {name}")
    if fields["StorePath"] != str(path):
        raise ValueError(f"it is of {fields['StorePath'][:300]!r}")
    size = _number(fields, "NarSize")
    if not size:
        raise ValueError("its NarSize is 0")
    references = {_store_path(name) for name in fields.get("References", "").split(" ") if name}
    deriver = fields.get("Deriver", "")
    deriver = "" if deriver in {"", "unknown-deriver"} else str(_store_path(deriver))
    info = PathInfo(
        path,
        parse_sha256(fields["NarHash"]),
        size,
        tuple(sorted(references - {path})),
        deriver,
        refers_to_itself=path in references,
    )
    compression = fields.get("Compression") or _DEFAULT_COMPRESSION
    if compression not in _COMPRESSIONS:
        raise ValueError(
            f"its compression {compression[:40]!r} is not supported: use zstd, xz, bzip2, gzip or none"
        )
    url = fields["URL"]
    if len(url) > _LONGEST_URL or not _URL.fullmatch(url) or not {".", ".."}.isdisjoint(url.split("/")):
        raise ValueError(f"its URL {url[:300]!r} is not a path below the cache")
    return NarInfo(
        info,
        url,
        cast("Compression", compression),
        parse_sha256(fields["FileHash"]) if fields.get("FileHash") else None,
        _number(fields, "FileSize") if fields.get("FileSize") else None,
        cache,
        fields.get("CA", ""),
        text=text,
    )


def _number(fields: Mapping[str, str], name: str) -> int:
    if _NUMBER.fullmatch(fields[name]) is None:
        raise ValueError(f"its {name} {fields[name][:40]!r} is not a number")
    return int(fields[name])


def _store_path(base_name: str) -> StorePath:
    try:
        return StorePath.parse(f"{STORE_DIRECTORY}/{base_name}")
    except ValueError:
        raise ValueError(f"{base_name[:300]!r} is not the name of a store path") from None


def _content_hash(found: NarInfo) -> str | None:
    """Check the path of a content-addressed narinfo against its content address.

    Returns the hash that its one file must have; an empty text if the NAR hash is the content address; ``None`` if
    the content address does not vouch for the contents.
    """
    info = found.info
    method, separator, digits = found.content_address.rpartition("sha256:")
    if not separator:
        return None
    try:
        content = parse_sha256(f"sha256:{digits}")
    except ValueError:
        return None
    match method:
        case "fixed:r:" if not info.refers_to_itself:
            # A path that refers to itself is hashed without these references, which needs its contents.
            references = "".join(f":{path}" for path in info.references)
            if info.nar_hash == content and info.path == _store_path_of(
                f"source{references}", content, info.path
            ):
                return ""
        case "fixed:" if not info.references and not info.refers_to_itself:
            inner = hashlib.sha256(f"fixed:out:sha256:{content}:".encode()).hexdigest()
            if info.path == _store_path_of("output:out", inner, info.path):
                return content
        case "text:" if not info.refers_to_itself:
            references = "".join(f":{path}" for path in info.references)
            if info.path == _store_path_of(f"text{references}", content, info.path):
                return content
        case _:
            pass
    return None


def _store_path_of(kind: str, content: str, path: StorePath) -> StorePath:
    """Compute a store path (``makeStorePath`` in Nix)."""
    digest = hashlib.sha256(f"{kind}:sha256:{content}:{STORE_DIRECTORY}:{path.name}".encode()).digest()
    folded = bytearray(_STORE_HASH)
    for place, value in enumerate(digest):
        folded[place % _STORE_HASH] ^= value
    return StorePath(f"{encode_base32(bytes(folded))}-{path.name}")
