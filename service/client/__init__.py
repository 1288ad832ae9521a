"""A client of the service in Python: NumPy arrays and files in, verdicts out.

    from vaegis.client import Client

    with Client("http://127.0.0.1:8000", key="vg_...") as client:
        verdicts = client.score("digits", images)  # (N, H, W) or (N, H, W, C), whole numbers
        print(verdicts.anomalous, verdicts.p_value)

`AsyncClient` does the same with `async with` and `await`. Needs httpx (`pip install 'vaegis[client]'`), NumPy and
orjson, and nothing that runs models.

Scoring and reading are repeated where the service was busy, was not ready or could not be reached, after the time that
it asked for. What changes something on the service is repeated only where it cannot have arrived.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from numpy.typing import ArrayLike

try:
    import anyio
    import httpx
except ImportError as error:
    raise ImportError("vaegis.client needs httpx; install it with `pip install 'vaegis[client]'`.") from error

from vaegis.service.client import calls
from vaegis.service.client.calls import ArrayOptions, Call, File, Options, Problem, Retries, ServiceError, Unreachable
from vaegis.service.client.verdicts import Description, Event, Model, Moved, Verdict, Verdicts

__all__ = [
    "AsyncClient",
    "Client",
    "Description",
    "Event",
    "Model",
    "Moved",
    "Problem",
    "Retries",
    "ServiceError",
    "Unreachable",
    "Verdict",
    "Verdicts",
]

T = TypeVar("T")


class _Session:
    """What both clients hold."""

    def __init__(
        self, url: str, key: str, timeout: float, retries: int | Retries, verify: ssl.SSLContext | bool
    ) -> None:
        """
        Args:
            url: of the service, such as `http://127.0.0.1:8000`.
            key: where the service asks for one.
            timeout: seconds that the service may be silent before that is an error.
            retries: attempts after the first; 0 for none.
            verify: certificates to trust, where the service speaks https; False trusts any.
        """
        self._retries = Retries(retries) if isinstance(retries, int) else retries
        self._settings: dict[str, Any] = {
            "base_url": url,
            "timeout": timeout,
            "verify": verify,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
        }

    def _arguments(self, call: Call[Any]) -> dict[str, Any]:
        headers = {"Content-Type": call.kind} if call.kind else {}
        return {"params": call.query, "content": call.content, "files": call.files, "headers": headers}


class Client(_Session):
    """Asks a service, and waits for its answers. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout: float = 30.0,
        retries: int | Retries = 3,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, key, timeout, retries, verify)
        self._http, self._sleep = httpx.Client(**self._settings), sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def score(self, model: str, data: ArrayLike, **options: Unpack[ArrayOptions]) -> Verdicts:
        """Verdicts on an array: whole numbers (N, H, W) or (N, H, W, C) of images, vectors (N, D), or rows (T, C)
        of one series. `model` is `NAME`, `NAME@VERSION` or `NAME@ALIAS`.

        Raises:
            Problem: the service refused it; no sample could be judged.
            Unreachable: no answer came.
        """
        return self._run(calls.score(model, data, options))

    def score_files(self, model: str, files: Sequence[File], **options: Unpack[Options]) -> Verdicts:
        """Verdicts on files: images (PNG, JPEG, BMP, TIFF, WebP), csv or Parquet. One that cannot be read is unjudged.

        Raises:
            OSError: a file is not there.
            Problem, Unreachable: as `score`.
        """
        return self._run(calls.score_files(model, files, options))

    def models(self) -> list[Model]:
        """Every model of the service."""
        return self._run(calls.models())

    def describe(self, model: str) -> Description:
        """What a model takes and how it is calibrated."""
        return self._run(calls.describe(model))

    def promote(self, model: str, version: int | str, alias: str = "champion") -> Moved:
        """Points an alias at a version."""
        return self._run(calls.promote(model, version, alias))

    def rollback(self, model: str, alias: str = "champion") -> Moved:
        """Points an alias back at the version it had before."""
        return self._run(calls.rollback(model, alias))

    def load(self, model: str) -> None:
        """Has a model answer again after it was unloaded."""
        self._run(calls.repository(model, "load"))

    def unload(self, model: str) -> None:
        """Closes a model until it is loaded again."""
        self._run(calls.repository(model, "unload"))

    def _run(self, call: Call[T]) -> T:
        attempts = calls.attempts(call, self._retries)
        wait = next(attempts)
        while True:
            if wait:
                self._sleep(wait)
            try:
                outcome: httpx.Response | httpx.TransportError = self._http.request(
                    call.method, call.path, **self._arguments(call)
                )
            except httpx.TransportError as error:
                outcome = error
            try:
                wait = attempts.send(outcome)
            except StopIteration as done:
                return call.read(done.value)


class AsyncClient(_Session):
    """The same as `Client`, to be awaited."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout: float = 30.0,
        retries: int | Retries = 3,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__(url, key, timeout, retries, verify)
        self._http, self._sleep = httpx.AsyncClient(**self._settings), sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def score(self, model: str, data: ArrayLike, **options: Unpack[ArrayOptions]) -> Verdicts:
        """See `Client.score`."""
        return await self._run(calls.score(model, data, options))

    async def score_files(self, model: str, files: Sequence[File], **options: Unpack[Options]) -> Verdicts:
        """See `Client.score_files`. The files are read before the first await."""
        return await self._run(calls.score_files(model, files, options))

    async def models(self) -> list[Model]:
        """See `Client.models`."""
        return await self._run(calls.models())

    async def describe(self, model: str) -> Description:
        """See `Client.describe`."""
        return await self._run(calls.describe(model))

    async def promote(self, model: str, version: int | str, alias: str = "champion") -> Moved:
        """See `Client.promote`."""
        return await self._run(calls.promote(model, version, alias))

    async def rollback(self, model: str, alias: str = "champion") -> Moved:
        """See `Client.rollback`."""
        return await self._run(calls.rollback(model, alias))

    async def load(self, model: str) -> None:
        """See `Client.load`."""
        await self._run(calls.repository(model, "load"))

    async def unload(self, model: str) -> None:
        """See `Client.unload`."""
        await self._run(calls.repository(model, "unload"))

    async def _run(self, call: Call[T]) -> T:
        attempts = calls.attempts(call, self._retries)
        wait = next(attempts)
        while True:
            if wait:
                await self._sleep(wait)
            try:
                outcome: httpx.Response | httpx.TransportError = await self._http.request(
                    call.method, call.path, **self._arguments(call)
                )
            except httpx.TransportError as error:
                outcome = error
            try:
                wait = attempts.send(outcome)
            except StopIteration as done:
                return call.read(done.value)
