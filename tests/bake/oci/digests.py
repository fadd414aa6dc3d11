"""What a file of known bytes is called."""

import hashlib


def digest(raw: bytes) -> tuple[str, int]:
    return hashlib.sha256(raw).hexdigest(), len(raw)
