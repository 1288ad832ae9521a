"""A disk that fills up: a real limit on the size of files, in this process. EFBIG stands in for ENOSPC."""

import resource
from contextlib import contextmanager


@contextmanager
def size_limit(most):
    """Within the block no file grows beyond `most` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
