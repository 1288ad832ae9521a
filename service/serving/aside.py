"""Work that may not come to an end, done aside: whoever needs it waits so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """One call in a thread of its own, which nobody waits for at the end of the process."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._call, self._outcome = call, list[T]()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self, seconds: float) -> T:
        """What the call returns.

        Raises:
            TimeoutError: it has not returned after so long, and goes on.
        """
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        if not self._outcome:
            raise TimeoutError
        return self._outcome[0]

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether the call has ended, waiting so long for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self._error = error
