"""A method with one mistake made in its source, to see which test notices."""

import inspect
import sys
import types


def mutated(cls: type, old: str, new: str) -> type:
    """The class with the functions of its module's source after `old` became `new`."""
    source = inspect.getsource(inspect.getmodule(cls))
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        exec(source.replace(old, new), module.__dict__)
    finally:
        del sys.modules["mutant"]
    functions = {
        k: f
        for k, f in vars(vars(module)[cls.__name__]).items()
        if inspect.isfunction(f) and not k.startswith("__")
    }
    return type(f"Mutated{cls.__name__}", (cls,), functions)
