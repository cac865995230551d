"""Disks that are full."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(n_bytes: int):
    """No file may grow beyond this: what a full disk is to every user of a machine."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
