"""The models of a registry, opened as the service opens them."""

import time

from vaegis.models.runtime.sessions import device_in_use
from vaegis.service.serving.live import Live
from vaegis.service.serving.open_versions import Opener
from vaegis.service.serving.served import OpenVersions
from vaegis.service.serving.shadow import Shadows

MUCH = 2**40


class NoTally:
    """Counts nothing."""

    def count_shadow(self, champion, shadow, outcomes, moments):
        pass


def live_models(registry, budget=MUCH, clock=time.monotonic):
    versions = OpenVersions()
    opener = Opener(versions, "cpu", 1, budget, clock)
    return Live(registry, versions, opener, Shadows(opener.open, NoTally()), device_in_use("cpu"), clock)
