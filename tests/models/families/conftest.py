"""What makes many exports quick."""

import functools

import pytest
from torch.onnx._internal.exporter import _registration


@pytest.fixture(autouse=True, scope="session")
def one_table_of_operators():
    """torch reads its table of ONNX operators from their sources anew at each export, which is half of the time that a
    small graph takes. The table is the same each time."""
    patched = pytest.MonkeyPatch()
    read = _registration.ONNXRegistry.from_torchlib.__func__
    patched.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(functools.cache(read)))
    yield
    patched.undo()
