"""The contract every method must keep, for methods from outside too: `check_method(MyMethod())`."""

from offbench.testing.contract import *  # noqa: F403
