"""The service from Python: NumPy arrays and files in, verdicts out; see `docs/client.md`."""

from vaegis.service.client import (
    AsyncClient,
    Client,
    Description,
    Event,
    Model,
    Moved,
    Problem,
    Retries,
    ServiceError,
    Unreachable,
    Verdict,
    Verdicts,
)

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
