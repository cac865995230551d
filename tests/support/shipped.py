"""Every method class that the package ships."""

import dataclasses
import importlib
import pkgutil

import offbench.methods


def shipped_methods() -> list:
    """Every method class of the package: a new one is tested by existing."""
    found = []
    for module in pkgutil.iter_modules(offbench.methods.__path__):
        namespace = vars(importlib.import_module(f"offbench.methods.{module.name}"))
        found += [
            c
            for c in namespace.values()
            if dataclasses.is_dataclass(c)
            and hasattr(c, "update")
            and c.__module__.endswith("." + module.name)
        ]
    return found
