"""The episodes that a stack's policies play, in monitor evaluations and in the test."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.results.schema import Stream

if TYPE_CHECKING:
    import pandas as pd

    from offbench.rollout import EnvPool
    from offbench.types import Policy


class Episodes(NamedTuple):
    """A stack's policy in its environments, by a protocol."""

    policy: "Policy"
    pool: "EnvPool"
    protocol: Mapping[str, Any]

    def play(
        self, state: Any, seeds: list[int], update: int, episodes: int, stream: Stream
    ) -> "pd.DataFrame":
        """Rows of `episodes` episodes for each of the stacked states, which have these seeds."""
        from offbench.rollout import evaluate

        return evaluate(
            self.policy,
            state,
            self.pool,
            seeds=seeds,
            episodes=episodes,
            stream=stream,
            update=update,
            n_envs=self.protocol["envs"],
        )

    def test(
        self, state: Any, seeds: list[int], update: int, broken: list[bool]
    ) -> "list[pd.DataFrame]":
        """The test episodes of the members whose parameters are finite."""
        from torch.utils._pytree import tree_map

        finite = [i for i, bad in enumerate(broken) if not bad]
        episodes = self.protocol["episodes"]
        if not (finite and episodes):
            return []
        own = tree_map(lambda x: x[finite], state)
        test = self.play(own, [seeds[i] for i in finite], update, episodes, "test")
        return [test.assign(member=test["member"].map(dict(enumerate(finite))))]
