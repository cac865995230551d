"""Compiles inductor's Triton kernels for a card to machine code, with triton's own ptxas and without a GPU."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from offbench.speed.invented import CARDS, invented
from offbench.speed.lowering import Code


class Cubin(NamedTuple):
    """A kernel in machine code, in the first of the forms that inductor would try."""

    kernel: str
    # 80 is sm_80
    arch: int
    # of machine code; 0 where it could not be compiled
    bytes: int
    # of each block
    shared: int = 0
    # of each thread; stack bytes are spilled registers. None where cuobjdump is not there
    registers: int | None = None
    stack: int | None = None
    error: str = ""


def compile_kernels(code: Code, card: str) -> list[Cubin]:
    """Every kernel that the code defines, for the card that the code was written for."""
    pattern = r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''"
    found = re.findall(pattern, code.source, re.DOTALL | re.MULTILINE)
    with invented(CARDS[card]):
        return [_compiled(name, source) for name, source in found]


def _compiled(name: str, source: str) -> Cubin:
    import triton
    from torch._inductor.codecache import PyCodeCache

    made: list[Any] = []
    compile_ = triton.compile

    def keep(*args: Any, **options: Any) -> Any:
        made.append(compile_(*args, **options))
        return made[-1]

    try:
        kernel = getattr(PyCodeCache.load(source), name)
        with mock.patch.object(triton, "compile", keep):
            kernel._precompile_config(kernel.configs[0])
    # triton and ptxas fail in many ways
    except Exception as error:
        return Cubin(
            name, 0, 0, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        )
    cubin = made[0].asm["cubin"]
    return Cubin(
        name, made[0].metadata.target.arch, len(cubin), made[0].metadata.shared, *_resources(cubin)
    )


def _resources(cubin: bytes) -> tuple[Any, ...]:
    """(registers, stack) as cuobjdump reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return (None, None)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = [re.search(rf"{word}:(\d+)", said.stdout) for word in ("REG", "STACK")]
    return tuple(int(x[1]) if x else None for x in found)
