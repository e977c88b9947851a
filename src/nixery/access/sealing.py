"""Sealed documents: encrypted and authenticated texts that this server, or a replica, gets back from a client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

# Bytes of the secret that the keys are derived from, at least.
_LEAST_SECRET = 32

_ALGORITHMS = ("dir", "A256GCM", "DEF")
_HEADER = {"alg": "dir", "enc": "A256GCM", "zip": "DEF"}

# Members of the outer document.
_EXPIRES, _CONTENT = "exp", "doc"


class Sealer:
    """Seals documents for one purpose (JWE, RFC 7516). One that was sealed for another purpose cannot be opened.

    Args:
        secret: shared by all replicas; at least 32 random bytes.
        purpose: of the documents.
        clock: seconds since the epoch.

    Raises:
        ValueError: the secret is too short.
    """

    def __init__(self, secret: bytes, purpose: str, clock: Callable[[], float] = time.time) -> None:
        if len(secret) < _LEAST_SECRET:
            raise ValueError(f"the secret has less than {_LEAST_SECRET} bytes")
        derived = HKDF(SHA256(), 32, salt=None, info=b"nixery sealed " + purpose.encode()).derive(secret)
        self._key = OctKey.import_key(derived)
        self._clock = clock
        self._registry = jwe.JWERegistry(algorithms=_ALGORITHMS)

    def seal(self, document: Mapping[str, Any], seconds: float) -> str:
        """Return a text of URL-safe characters that can be opened for some seconds."""
        content = json.dumps({_EXPIRES: self._clock() + seconds, _CONTENT: dict(document)})
        return jwe.encrypt_compact(_HEADER, content, self._key, registry=self._registry)

    def open(self, text: str) -> tuple[Mapping[str, Any], float] | None:
        """Return a document and when it expires; ``None`` if the text is not one of ``seal``, or has expired."""
        try:
            plain = jwe.decrypt_compact(text.encode("ascii"), self._key, registry=self._registry).plaintext
            outer = json.loads(plain or b"")
            expires, document = outer[_EXPIRES], outer[_CONTENT]
        except (JoseError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return (document, expires) if self._clock() < expires else None
