"""What wrappers of a method have in common: they are methods, and act as the one inside."""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A method around another, whose state is the field `inner` of its own.

    What the method inside lacks (`check`, `value`, ...), the wrapper lacks too.
    """

    # the wrapped method
    method: Any

    @property
    def minibatches(self) -> int:
        return getattr(self.method, "minibatches", 1)

    @property
    def needs(self) -> tuple[str, ...]:
        return getattr(self.method, "needs", ())

    @property
    def actions(self) -> str:
        return getattr(self.method, "actions", "continuous")

    @property
    def check(self) -> Any:
        return self.method.check

    @property
    def value(self) -> Any:
        return self._of_inner(self.method.value)

    @property
    def act_for(self) -> Any:
        return self._of_inner(self.method.act_for)

    @property
    def gaussian_policy(self) -> Any:
        return self._of_inner(self.method.gaussian_policy)

    @staticmethod
    def _of_inner(function: Any) -> Any:
        return lambda state, *given: function(state.inner, *given)

    def with_values(self, values: dict[str, Tensor]) -> Self:
        """A copy with other hyper-parameters of the wrapped method."""
        inner = self.method
        own = inner.with_values(values) if isinstance(inner, Wrapper) else replace(inner, **values)
        return replace(self, method=own)

    def act(self, state: Any, obs: Any, key: Tensor) -> Any:
        return self.method.act(state.inner, obs, key)
