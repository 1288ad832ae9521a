"""How much may be in at a time, for every wire that samples come by."""

from __future__ import annotations

import anyio

from vaegis.service.errors import Full


class Admission:
    """What is received, waits or is being scored, bounded in samples and in bytes. Used on the event loop only.

    Bodies that are still coming in are bounded by `vaegis.service.http.envelope`.
    """

    def __init__(self, samples: int, size: int, decoding: int) -> None:
        """
        Args:
            samples: beyond which nothing more is let in; a request counts as one until it is decoded, and for a quarter
                of all at most, since it takes turns with others in the graph and must not shut them out.
            size: the same for the bytes of decoded samples.
            decoding: bodies that threads may decode at the same time.
        """
        self._most_samples, self._most_bytes = samples, size
        self.most_of_one = max(1, samples // 4)
        self.samples, self.bytes = 0, 0
        self.limiter = anyio.CapacityLimiter(decoding)

    def enter(self) -> Place:
        """Lets a request in; the place must be left again.

        Raises:
            Full: there is as much in already as may be. The last one let in may go beyond: a large one could otherwise
                never come in.
        """
        if self.samples >= self._most_samples:
            raise Full(
                f"{self.samples} samples are being scored or wait, and this service takes {self._most_samples}. Try "
                "again in a moment, or raise VAEGIS_QUEUE_SAMPLES."
            )
        if self.bytes >= self._most_bytes:
            raise Full(
                f"{self.bytes} bytes of samples are being scored or wait, and this service takes {self._most_bytes}. "
                "Try again in a moment, or raise VAEGIS_QUEUE_BYTES."
            )
        return Place(self)


class Place:
    """What one request holds of the queue."""

    __slots__ = ("_admission", "_bytes", "_samples")

    def __init__(self, admission: Admission) -> None:
        self._admission, self._samples, self._bytes = admission, 0, 0
        self.hold(1, 0)

    def hold(self, samples: int, size: int) -> None:
        """From now on it is so many samples, of so many bytes."""
        admission = self._admission
        samples = min(samples, admission.most_of_one)
        admission.samples += samples - self._samples
        admission.bytes += size - self._bytes
        self._samples, self._bytes = samples, size

    def leave(self) -> None:
        """Gives all of it back."""
        self.hold(0, 0)
