"""Who a client is, where it may go, and how much it may ask now.

Keys and what they have used; no engine, no queue. A refusal is a value.
"""

import math
import time
from collections.abc import Iterable

from serve.errors import Refusal
from serve.keys import NOBODY, Key, Keys
from serve.quota import Quota, Spent
from serve.routes import ADMIN, Route

BEARER = b"bearer "
MISSING = Refusal(
    401,
    "missing_api_key",
    "this gateway asks for a key: Authorization: Bearer …",
    headers={"www-authenticate": "Bearer"},
)
WRONG = Refusal(
    401,
    "invalid_api_key",
    "the key is unknown, or revoked",
    headers={"www-authenticate": 'Bearer error="invalid_token"'},
)
NO_ADMIN = Refusal(
    403,
    "admin_key_required",
    "this asks for a key that may administer: preheat serve keys add --admin",
)


class Gate:
    """The keys in force and their quotas."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._quotas: dict[str, Quota] = {}

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | Refusal:
        """Who asks."""
        if not self._keys.on:
            return NOBODY
        if not (secret := secret_of(headers)):
            return MISSING
        return self._keys.find(secret) or WRONG

    def admitted(self, key: Key, route: Route) -> Key | Refusal:
        """``key``, if it may use ``route``; what changes the appliance, nobody may where keys are
        off.
        """
        if key.allows(route.path):
            return key
        if route in ADMIN:
            return NO_ADMIN
        return Refusal(403, "route_not_allowed", f"key {key.id} may not use {route.path}")

    def quota(self, key: Key) -> Quota | None:
        """What ``key`` has used, where it has a limit."""
        if key is NOBODY:
            return None
        now = time.monotonic()
        if (quota := self._quotas.get(key.id)) is None:
            quota = self._quotas[key.id] = Quota(key, now)
        elif quota.key is not key:
            quota.change(key, now)
        return quota


def spent(why: Spent) -> Refusal:
    """A quota's refusal as a client hears it."""
    seconds = str(max(1, math.ceil(why.retry_after)))
    return Refusal(429, why.code, why.message, headers={"retry-after": seconds})


def secret_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What stands in ``Authorization`` (OpenAI's clients) or ``x-api-key`` (Anthropic's)."""
    for name, value in headers:
        if name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
            return value[len(BEARER) :].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return ""


def parsed_keys(text: str | None) -> tuple[str, ...]:
    """The keys in a variable, split at commas; one that is blank is refused by ``Keys``."""
    return tuple(word.strip() for word in text.split(",")) if text else ()
