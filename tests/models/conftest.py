import pytest
from bundle_folders import write


@pytest.fixture
def folder(tmp_path):
    """The folder of a small bundle."""
    return write(tmp_path / "bundle").path
