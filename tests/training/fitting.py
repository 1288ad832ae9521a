"""What the tests of the training loop share."""

import numpy as np

from vaegis.models.inputs import InMemory
from vaegis.models.spec import VectorSpec
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split

ONE = VectorSpec(("x",))


class Stopped(Exception):
    """The test's own kill."""


def levels(fit_at, validate_at):
    """Samples of one value each: 40 to learn from, 10 to validate on, 10 to calibrate on."""
    x = np.repeat(np.array([fit_at, validate_at, 0.0], np.float32), [40, 10, 10])[:, None]
    return InMemory(ONE, x), Split(np.arange(40), np.arange(40, 50), np.arange(50, 60), 10)


def options(**more):
    return FitOptions(device="cpu", **{"steps": 200, "batch": 20} | more)


def state(fitted):
    return {k: v.numpy().tobytes() for k, v in fitted.family.state_dict().items()}
