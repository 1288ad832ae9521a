"""The models in service: addresses -> open scorers.

What an address stands for is held here and looked up again only when the store says that something of the model has
changed; a thread asks twice a second, so that a promotion by any process is seen without a restart and no request
waits for the store. A new version is opened aside before the address moves to it; requests under way keep the one they
began with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

import structlog

from vaegis.models.errors import NotFound, Refusal
from vaegis.models.runtime.sessions import DeviceInUse
from vaegis.models.texts import printable
from vaegis.service.errors import NotReady, Unloaded
from vaegis.service.serving.open_versions import Opener
from vaegis.service.serving.served import OpenVersions, Served
from vaegis.service.serving.shadow import Shadows
from vaegis.service.store.database import Unavailable
from vaegis.service.store.registry import Registry, Resolved
from vaegis.service.store.servings import Route, Servings, State

FRESH_SECONDS = 1.0
WATCH_SECONDS = 0.5
ADDRESSES_MOST = 4096  # remembered; forgotten all together beyond that


class Live:
    """Opens versions when they are first asked for. Safe between threads."""

    def __init__(
        self,
        registry: Registry,
        versions: OpenVersions,
        opener: Opener,
        shadows: Shadows,
        placed: DeviceInUse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            versions: the table that `opener` keeps.
            shadows: have the store's assignments passed on to them.
            placed: where graphs run.
        """
        self.placed, self.opener = placed, opener
        self._versions, self._shadows = versions, shadows
        self._registry, self._servings, self._clock = registry, Servings(registry), clock
        self._routes: dict[str, Route] = {}
        self._states: dict[str, State] | None = None  # of every model, when the store was last asked
        self._fresh_until = float("-inf")
        self._looking = threading.Lock()
        self._changes = 0  # counts looks that found something new
        self._failed: dict[str, str] = {}  # model -> why the version it should be served by cannot be opened
        self._waiting: tuple[str, ...] | None = None  # champions still to be opened at the start; None = not begun
        self._stopped, self._leaving = threading.Event(), False
        self.ended = True  # whether no graph is still being opened, once it was stopped

    @property
    def device(self) -> str:
        """Where graphs run: cuda or cpu."""
        return self.placed.device

    def peek(self, address: str, key: str = "") -> Served | None:
        """What `get` would return, where that needs no waiting."""
        route = self._routes.get(address)
        if route is None or self._fresh_until <= self._clock():
            return None
        return self.opener.peek(_chosen(route, key).place)

    def get(self, address: str, key: str = "") -> Served:
        """The version that answers an address, open.

        Args:
            key: what tells requests apart, such as their id; the same key gets the same side of a canary. Without one
                the champion answers.

        Raises:
            NotFound: no such model, version or alias.
            Unloaded: the model was unloaded.
            Refusal: the bundle is damaged or does not fit, or the store cannot be reached.
        """
        self.look()
        while True:
            changes = self._changes
            route = self._routes.get(address) or self._servings.route(address)
            if not route.loaded:
                raise Unloaded(
                    f"Model {route.main.name} was unloaded and answers nothing until it is loaded again "
                    f"(POST /v2/repository/models/{route.main.name}/load)."
                )
            try:
                route = self._ready(route, champion="@" not in address)
            except Refusal:
                earlier = None if "@" in address else self._before(route)
                if earlier is None:
                    raise
                route = earlier
            served = self.opener.open(_chosen(route, key))
            if changes == self._changes:
                break  # else what was read may be from before the change
        if len(self._routes) >= ADDRESSES_MOST:
            self._routes = {}
        self._adopt(address, route)
        return served

    def load(self, name: str, by: str = "") -> Served:
        """Has a model served by every process of the store, and opens it here.

        Raises:
            NotFound, Refusal: as `get`.
        """
        self._servings.load(_bare(name), True, by)
        self.look(now=True)
        return self.get(name)

    def unload(self, name: str, by: str = "") -> None:
        """Closes a model in every process of the store until it is loaded again; requests under way are answered.

        Raises:
            NotFound: there is no such model.
        """
        self._servings.load(_bare(name), False, by)
        self.look(now=True)

    def served(self) -> tuple[Served, ...]:
        """The versions that are open."""
        return self._versions.all()

    def start(self) -> None:
        """Opens the champions, so that the first requests need not wait.

        A champion that cannot be opened is named by `check`; those beyond the memory budget wait to be asked for.
        """
        log = structlog.get_logger("vaegis.live")
        self.look()
        models = [m.name for m in self._registry.list() if "champion" in m.aliases]
        self._waiting = tuple(models)
        for name in models:
            try:
                route = self._servings.route(name)
                if route.loaded and self.opener.fits(route.main):
                    served = self.get(name)
                    log.info(
                        "model in service", model=name, version=served.resolved.version, device=served.scorer.device
                    )
            except Exception as error:
                self._failed[name] = _sentence(error)
                log.error("model cannot be served", model=name, reason=_sentence(error), exc_info=_unexpected(error))
            self._waiting = self._waiting[1:]

    def run(self) -> None:
        """Opens the champions, then follows the store, until `stop`; nothing else ends it."""
        log = structlog.get_logger("vaegis.live")
        while not self._stopped.is_set():
            try:
                self.start()
                break
            except Exception as error:
                log.error("models cannot be opened", reason=_sentence(error), exc_info=_unexpected(error))
                self._stopped.wait(FRESH_SECONDS)
        self.watch()

    def watch(self) -> None:
        """Follows the store until `stop`."""
        while not self._stopped.wait(WATCH_SECONDS):
            try:
                self.look(now=True)
            except Exception as error:  # noqa: BLE001 - a thread that ends would silence the promotions of all models
                structlog.get_logger("vaegis.live").error(
                    "the store cannot be followed", reason=_sentence(error), exc_info=_unexpected(error)
                )

    def stop(self) -> None:
        """Ends the watching, the shadows, and graph calls that have not ended by now."""
        self._stopped.set()
        self._shadows.stop()
        self.ended = self.opener.stop()

    def leave(self) -> None:
        """From now on `check` tells whoever sends requests to send them elsewhere; they are answered nevertheless."""
        self._leaving = True

    def look(self, now: bool = False) -> None:
        """Follows what has changed in the store, unless that was asked a moment ago.

        While the store cannot be reached, what is known stays in service.
        """
        if not now and self._clock() < self._fresh_until:
            return
        with self._looking:
            if not now and self._clock() < self._fresh_until:
                return  # somebody else has just looked
            try:
                states = self._servings.states()
            except Unavailable as error:
                if self._states is None:
                    raise
                structlog.get_logger("vaegis.live").warning("the store does not answer", reason=str(error))
                self._fresh_until = self._clock() + FRESH_SECONDS
                return
            if self._states is not None and states != self._states:
                self._fresh_until = float("inf")  # what was known answers until the new versions are open
                self._changes += 1
                try:
                    self._follow({n for n in states if states[n] != self._states.get(n)})
                except BaseException:
                    self._fresh_until = self._clock() + FRESH_SECONDS  # and looked at again then
                    raise
            self._states = states
            self._fresh_until = self._clock() + FRESH_SECONDS

    def refresh(self) -> None:
        """Looks everything up again, such as a bundle that was restored."""
        self.opener.retry()
        with self._looking:
            self._states = {} if self._states is not None else None
        self.look(now=True)

    def check(self) -> tuple[str, ...]:
        """Whether everything that should be in service is; what is wrong without stopping any answer.

        Raises:
            Refusal: the store does not answer, models are still being opened, or one cannot be.
        """
        if self._leaving:
            raise NotReady("The service is stopping.")
        self._registry.ping()
        if self._waiting is None or self._waiting:
            raise NotReady(f"Models are still being opened: {', '.join((self._waiting or ('all',))[:10])}.")
        warnings = []
        for name, reason in list(self._failed.items()):
            route = self._routes.get(name)
            if route is None or self.opener.peek(route.main.place) is None:
                raise NotReady(f"Model {name} cannot be served: {reason}")
            warnings.append(f"Model {name} is served by its version before, as the new one cannot be opened: {reason}")
        return tuple(warnings)

    def _follow(self, names: set[str]) -> None:
        """Looks up the addresses of these models again, and opens what they stand for now."""
        log = structlog.get_logger("vaegis.live")
        for address, before in list(self._routes.items()):
            name = before.main.name
            if name not in names:
                continue
            try:
                route = self._servings.route(address)
                if route.loaded:
                    self._adopt(address, self._ready(route, champion="@" not in address))
                    continue
            except NotFound:
                pass  # an alias that has gone
            except Refusal as error:
                log.error("the version before stays in service", model=name, address=address, reason=str(error))
                continue
            self._routes.pop(address, None)
            self._shadows.assign(before.main, None)
        for name in names:
            if not self._servings.of(name).loaded:
                self.opener.close(name)

    def _adopt(self, address: str, route: Route) -> None:
        before = self._routes.get(address)
        self._routes[address] = route
        if address == route.main.name:
            if before is not None and before.main != route.main:
                self._shadows.assign(before.main, None)
            self._shadows.assign(route.main, route.shadow)

    def _before(self, route: Route) -> Route | None:
        """The version that was the champion before, open, for when the one promoted over it cannot be opened."""
        name = route.main.name
        earlier = self._registry.before(name)
        if earlier is None:
            return None
        try:
            self.opener.open(earlier)
        except Refusal:
            return None
        structlog.get_logger("vaegis.live").error(
            "the version before is put into service", model=name, version=earlier.version, reason=self._failed[name]
        )
        return Route(earlier, route.loaded)

    def _ready(self, route: Route, champion: bool) -> Route:
        """The route with its versions open; without its canary where that cannot be opened."""
        name = route.main.name
        try:
            self.opener.open(route.main)
        except Refusal as error:
            if champion:  # a damaged version that nobody is served by default does not make us unready
                self._failed[name] = str(error)
            raise
        if champion:
            self._failed.pop(name, None)
        if route.canary is None:
            return route
        try:
            self.opener.open(route.canary)
        except Refusal as error:
            structlog.get_logger("vaegis.live").error("the canary cannot answer", model=name, reason=str(error))
            return replace(route, canary=None)
        return route


def _chosen(route: Route, key: str) -> Resolved:
    """The version that answers a request."""
    if route.canary is None or not key:
        return route.main
    number = blake2b(f"{route.main.name}\0{key}".encode(), digest_size=8).digest()
    return route.canary if int.from_bytes(number) < route.share * 2**64 else route.main


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {printable(str(error))[:200]}"


def _unexpected(error: Exception) -> Exception | None:
    """What the log shows the trace of."""
    return None if isinstance(error, Refusal) else error


def _bare(name: str) -> str:
    if "@" in name:
        raise Refusal(f"{name[:70]!r} names one version; a model is loaded and unloaded whole, by its name alone.")
    return name
