"""What kind of failure an error is, of real errors where one can be made here."""

import errno
import os
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

from offbench.bench.failures import failure_of
from offbench.errors import UserError


def raised(call) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def cannot_write() -> None:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise UserError(f"cannot write record x.json: {error.strerror}") from None


def unknown_name() -> None:
    try:
        {}["iqll"]
    except KeyError:
        raise UserError("unknown method 'iqll'") from None


HUGE = 2**58


@pytest.mark.parametrize(
    "call", [lambda: torch.empty(HUGE), lambda: np.empty(HUGE, np.float32), lambda: bytearray(HUGE)]
)
def test_an_allocation_that_fails_is_out_of_memory(call):
    kind, reason = failure_of(raised(call))
    assert kind == "error" and reason.startswith("out of memory: ") and "\n" not in reason
    assert "alloc_cpu" not in reason


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_device_or_a_kernel_without_memory_is_out_of_memory(error):
    kind, reason = failure_of(error)
    assert kind == "error" and reason.startswith("out of memory: ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        EOFError(),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        BrokenProcessPool("a process was terminated abruptly"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        raised(cannot_write),
    ],
)
def test_what_a_retry_may_mend_is_of_the_infrastructure(error):
    assert failure_of(error)[0] == "infrastructure"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes\n do not fit"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ZeroDivisionError(),
    ],
)
def test_what_fails_again_is_an_error_and_said_in_one_line(error):
    kind, reason = failure_of(error)
    assert kind == "error" and reason.startswith(type(error).__name__) and "\n" not in reason


def test_a_mistake_of_the_user_keeps_its_own_words():
    assert failure_of(UserError("no such task")) == ("user", "no such task")
    assert failure_of(raised(unknown_name)) == ("user", "unknown method 'iqll'")
