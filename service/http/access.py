"""Who may ask: keys and scopes.

While no unrevoked key exists, a service on a loopback address answers anybody: whoever reaches it has the machine. On
any other address a key is always needed, so that revoking the last one locks the door instead of opening it.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from vaegis.models.errors import NotAllowed, NotAuthenticated, Refusal
from vaegis.service.store.keys import SCOPES, Key, Keys, digest, public_id

LOOK_SECONDS = 0.01  # requests that come in together need not all ask the store whether it has changed
FRESH_SECONDS = 1.0  # how long a read of the keys is believed, where the store does not tell of changes itself
# These say nothing about models or data.
OPEN = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
OPEN_FOLDER = "/docs-assets/"


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    scopes: frozenset[str]
    key: str = ""  # id of the key
    rate: float | None = None  # of the key


ANYBODY = Caller("anybody", frozenset(SCOPES))


class AccessGate:
    """Checks the key of every request against the store's, which are read again when the store has changed."""

    def __init__(self, keys: Keys, always: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`always`: ask for a key even while there is none."""
        self._keys, self._always, self._clock = keys, always, clock
        self._live: dict[str, Key] = {}
        self._until = float("-inf")
        self._stamp: int | None = None
        self._looked = float("-inf")  # when the keys were last found to be the store's
        self._reading = asyncio.Lock()  # of many requests that find the keys stale, one reads them

    async def caller(self, headers: Headers) -> Caller:
        """Who asks.

        Raises:
            NotAuthenticated: a key is needed and none, an unknown or a revoked one was given.
        """
        if self._stale():
            async with self._reading:
                if self._stale():
                    await anyio.to_thread.run_sync(self._read)
        if not self._live and not self._always:
            return ANYBODY
        text = _given(headers)
        if not text:
            raise NotAuthenticated("This service needs a key; send it as `Authorization: Bearer KEY` or `X-API-Key`.")
        key = self._live.get(public_id(text))
        # Compared even for an unknown id, so that the time taken does not tell which ids exist.
        if not hmac.compare_digest(digest(text), key.sha256 if key else "0" * 64) or key is None:
            raise NotAuthenticated("The key is not known or was revoked; ask whoever runs the service for another.")
        return Caller(key.name, key.scopes, key.id, key.rate)

    def _stale(self) -> bool:
        now = self._clock()
        if now < self._looked + LOOK_SECONDS:
            return False
        if now >= self._until or self._keys.stamp() != self._stamp:
            return True
        self._looked = now
        return False

    def _read(self) -> None:
        # The stamp first: what changes while the keys are read is seen by the next request.
        stamp, until = self._keys.stamp(), self._clock() + FRESH_SECONDS
        self._live = {k.id: k for k in self._keys.list() if k.revoked is None}
        self._stamp, self._until = stamp, until


def is_open(path: str) -> bool:
    """Whether a path answers without a key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


def allow(scope: Scope, needed: str) -> Caller:
    """The caller of a request, who must have a scope.

    Raises:
        NotAllowed: the key lacks it.
    """
    caller: Caller = scope["vaegis.caller"]
    if needed in caller.scopes or "admin" in caller.scopes:
        return caller
    raise NotAllowed(
        f"The key of {caller.name} has the scopes {', '.join(sorted(caller.scopes))}; this needs {needed} (to "
        f"{SCOPES[needed].split(';')[0]}). Use a key that has it."
    )


def admin(request: Request) -> Caller:
    """The caller, who must have the scope admin; for routes to depend on."""
    return allow(request.scope, "admin")


def check_origin(method: str, headers: Headers) -> None:
    """Refuses what a page of another site has a browser send here. Where a key is needed, no page has one; where none
    is, the browser stands on the machine that may ask.

    Raises:
        NotAllowed: the page that asks is not one of this service.
    """
    origin = headers.get("origin")
    if method in SAFE or origin is None or urlsplit(origin).netloc == headers.get("host"):
        return
    raise NotAllowed(
        f"A page of {origin[:100]} asks, and while there are no keys this service answers its own pages only. Make a "
        "key with `vaegis keys create NAME`, and send it."
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Keys) -> None:
    """Refuses to open the service to a network without a key.

    Raises:
        Refusal: the address is not loopback and no unrevoked key exists.
    """
    if is_loopback(host) or any(k.revoked is None for k in keys.list()):
        return
    raise Refusal(
        f"Listening on {host} would let anybody on the network score and promote models. Make a key first with "
        "`vaegis keys create NAME --scope score`, or listen on 127.0.0.1."
    )


def _given(headers: Headers) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key", "").strip()
