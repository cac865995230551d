"""The same question as same_updates.py, asked of A2PR and its authors' code.

    python tests/parity/same_updates_a2pr.py a2pr FOLDER/TASK.npz --code A2PR [--set alpha=2.51 ...]

Needs torch. `--set` changes a setting on our side alone, to see that the comparison can fail. In the text of the
authors' code two numbers are replaced, the widths 256 and 750, for which it has no setting.
"""

import argparse
import re
import sys
import types
from pathlib import Path

import torch
from same_updates import (
    HIDDEN,
    KEY,
    SIZE,
    Data,
    Noise,
    _spec,
    clone,
    corl_batch,
    far,
    layers,
    our_batch,
    stacked,
)

from offbench import rng
from offbench.methods.a2pr import A2PR

CODE = "ltlhuuu/A2PR f92a2a4"
FILES = {"core.network.actor": "core/network/actor.py", "core.network.critic": "core/network/critic.py",
         "A2PR": "A2PR.py"}  # fmt: skip
# none of which is 1
SETTINGS = {"alpha": 2.5, "bc_weight": 0.4, "cvae_weight": 1.5}


def load(folder: Path) -> types.ModuleType:
    """The authors' file as a module, its networks of width HIDDEN."""
    sys.path.insert(0, str(folder))
    for name, path in FILES.items():
        text = re.sub(r"\b(256|750)\b(?=[,)])", str(HIDDEN), (folder / path).read_text())
        text = text.replace(f"batch_size={HIDDEN}", f"batch_size={SIZE}")
        sys.modules[name] = module = types.ModuleType(name)
        exec(compile(text, path, "exec"), module.__dict__)
    return sys.modules["A2PR"]


class Buffer:
    """Deals out the batches it was given, terminals as the authors store them."""

    def __init__(self):
        self.batch: list[torch.Tensor] = []

    def sample(self, size: int) -> list[torch.Tensor]:
        obs, action, reward, next_obs, terminal = self.batch
        assert len(obs) == size
        return [obs, action, reward, next_obs, 1 - terminal]


def merged(body, *heads) -> list[dict]:
    """Layers of an encoder with two heads as ours, whose last layer is both."""
    first, last = layers(*body), [layers(head)[0] for head in heads]
    return [*first, {name: torch.cat([x[name] for x in last], -1) for name in ("w", "b")}]


def weights(theirs) -> dict:
    """The parts of our state, in the authors' weights."""

    def listed(net, first: int, last: int) -> torch.nn.ModuleList:
        return torch.nn.ModuleList(getattr(net, f"l{i}") for i in range(first, last + 1))

    twins = lambda net: layers(listed(net, 1, 5), listed(net, 6, 10))
    vae = theirs.vae
    encoder = merged([torch.nn.ModuleList([vae.e1, vae.e2])], vae.mean, vae.log_std)
    return {
        "actor": layers(theirs.actor),
        "critic": twins(theirs.critic),
        "value": layers(theirs.value),
        "cvae": {
            "encoder": encoder,
            "decoder": layers(torch.nn.ModuleList([vae.d1, vae.d2, vae.d3])),
        },
        "target_actor": layers(theirs.actor_target),
        "target_critic": twins(theirs.critic_target),
    }


def updates(peer, data: Data, ours: dict):
    """Yields our state's parts beside theirs after each two updates of theirs."""
    n_obs, n_act = (data.columns[k].shape[1] for k in ("observations", "actions"))
    theirs = peer.A2PR(
        n_obs, n_act, 1.0, "cpu",
        alpha=SETTINGS["alpha"], mask=SETTINGS["bc_weight"], vae_weight=SETTINGS["cvae_weight"],
    )  # fmt: skip
    method = A2PR(hidden=(HIDDEN,) * 3, cvae_hidden=(HIDDEN,) * 2, **SETTINGS | ours)
    state = method.init(rng.key(0), _spec(n_obs, n_act))._replace(**weights(theirs))
    noise, buffer, served = Noise(), Buffer(), []
    peer.torch.randn_like = lambda x: served.pop(0)
    noise.serve()
    while True:
        batches = [data.batch(), data.batch()]
        sizes = [n_act, 2 * n_act] * 2 + [2 * n_act]
        drawn = [noise.normal(SIZE, n) for n in sizes]
        served[:], noise.queue = drawn, list(drawn)
        for b in batches:
            buffer.batch = corl_batch(b)
            theirs.train(buffer, SIZE)
        state, metrics = method.update(
            state, stacked([our_batch(b)._replace(extras=()) for b in batches]), KEY
        )
        assert not served and not noise.queue
        now = weights(theirs)
        yield {name: (getattr(state, name), now[name]) for name in now}, metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=["a2pr"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True, help="a checkout of ltlhuuu/A2PR")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    data = Data(given.data, given.updates)
    torch.manual_seed(0)
    changed = {k: float(v) for k, v in (x.split("=") for x in given.set)}
    first, seen = None, []
    for n, (pairs, metrics) in enumerate(updates(load(given.code), data, changed), 1):
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        seen.append([float(metrics[x]) for x in ("taught", "imitating", "reconstructed")])
        if 2 * n >= given.updates:
            break
    shares = torch.tensor(seen).mean(0).tolist()
    print(
        "mean shares: taught {:.2f}, imitating {:.2f}, reconstructed {:.2f}".format(*shares),
        file=sys.stderr,
    )
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    for name, (ours, theirs) in pairs.items():
        about = f"a2pr,{CODE},{data.task},{2 * n},{name}"
        print(f"{about},{far(ours, theirs):.1e},{far(theirs, first[name]):.1e}")
