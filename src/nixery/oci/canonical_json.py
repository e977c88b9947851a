"""One way to write a JSON document, so that equal documents have equal digests."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 -- whatever JSON can express
    """Serialise with sorted keys, no white space and UTF-8 unescaped (after OLPC's canonical JSON)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
