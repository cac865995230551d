"""Networks and optimisers as pure functions of parameters; `from_module` takes a torch.nn module."""

from offbench.nn.nets import from_module

__all__ = ["from_module"]
