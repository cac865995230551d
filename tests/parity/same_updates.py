"""From a reference's weights, on its batches and noise: how far offbench's update goes from its own.

    python tests/parity/same_updates.py ALGORITHM FOLDER/TASK.npz --corl CORL/algorithms/offline
    python tests/parity/same_updates.py edac FOLDER/TASK.npz --edac EDAC     (also sac_n: the authors' code)

Both sides run in float64 and in one process, so that what is left is the order of arithmetic.
Needs torch, and jax and flax for rebrac; offbench's random numbers are replaced by the ones CORL draws.
"""

import argparse
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from peer import load

import offbench.rng as rng
from offbench.methods.bc import BC
from offbench.types import Batch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
HIDDEN, SIZE = 64, 256


def layers(*modules) -> list[dict]:
    """Weights of CORL's networks as ours; several of them are an ensemble."""
    nets = [[m for m in net.modules() if isinstance(m, torch.nn.Linear)] for net in modules]
    made = []
    for linear in zip(*nets, strict=True):
        w = torch.stack([x.weight.detach().T.clone() for x in linear])
        b = torch.stack([x.bias.detach()[None].clone() for x in linear])
        made.append({"w": w, "b": b} if len(nets) > 1 else {"w": w[0], "b": b[0]})
    return made


class Data:
    def __init__(self, path: Path, updates: int):
        self.updates = updates
        file = np.load(path)
        self.task = json.loads(str(file["about"]))["id"]
        kept = file["has_next"]
        self.columns = {
            k: file[k][kept].astype(np.float64)
            for k in file.files
            if k not in ("about", "has_next")
        }
        obs = self.columns["observations"]
        mean, std = obs.mean(0), obs.std(0) + 1e-3
        for k in ("observations", "next_observations"):
            self.columns[k] = (self.columns[k] - mean) / std
        self.rng = np.random.default_rng(0)

    def batch(self) -> dict[str, np.ndarray]:
        rows = self.rng.integers(len(self.columns["rewards"]), size=SIZE)
        return {k: v[rows] for k, v in self.columns.items()}


def corl_batch(b: dict) -> list[torch.Tensor]:
    column = lambda k: torch.tensor(b[k]).reshape(SIZE, -1)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    return [column(k) for k in names]


def our_batch(b: dict) -> Batch:
    t = {k: torch.tensor(v) for k, v in b.items()}
    extras = {"next_action": t["next_actions"], "return_to_go": t.get("returns")}
    discount = 0.99 * (1 - t["terminals"])
    return Batch(
        t["observations"], t["actions"], t["rewards"], discount, t["next_observations"], extras
    )


def stacked(batches: list[Batch]) -> Batch:
    return torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *batches)


class Noise:
    """Served to CORL as it asks, and to our method in the order and shape it asks in."""

    def __init__(self):
        self.rng = np.random.default_rng(1)
        self.queue: list[torch.Tensor] = []

    def serve(self) -> None:
        rng.normal = lambda key, shape, dtype=None: self.take(shape)
        rng.normal_like = lambda key, x: self.take(tuple(x.shape))
        rng.uniform = lambda key, shape, dtype=None: self.take(shape)

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        value = self.queue.pop(0)
        assert tuple(value.shape) == tuple(shape), (value.shape, shape)
        return value

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.tensor(self.rng.normal(size=shape))

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.tensor(self.rng.uniform(size=shape))


def far(a, b) -> float:
    """Largest difference of two trees of tensors."""
    x, y = (torch.utils._pytree.tree_leaves(t) for t in (a, b))
    return max(float((p - q).abs().max()) for p, q in zip(x, y, strict=True))


def clone(tree):
    return torch.utils._pytree.tree_map(torch.clone, tree)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-4)


KEY = torch.tensor(0)


def bc(peer, data: Data, noise: Noise, n_obs: int, n_act: int):
    actor = peer.Actor(n_obs, n_act, 1.0)
    theirs = peer.BC(1.0, actor, adam(actor.parameters()))
    method = BC(hidden=(HIDDEN, HIDDEN))
    state = method.init(rng.key(0), _spec(n_obs, n_act))._replace(actor=layers(actor))
    noise.serve()
    while True:
        b = data.batch()
        theirs.train(corl_batch(b))
        state, _ = method.update(state, our_batch(b), KEY)
        yield 1, {"actor": (state.actor, layers(actor))}


def td3_bc(peer, data, noise, n_obs, n_act):
    from offbench.methods.td3_bc import TD3BC

    actor, c1, c2 = (
        peer.Actor(n_obs, n_act, 1.0),
        peer.Critic(n_obs, n_act),
        peer.Critic(n_obs, n_act),
    )
    theirs = peer.TD3_BC(
        1.0, actor, adam(actor.parameters()), c1, adam(c1.parameters()), c2, adam(c2.parameters())
    )
    method = TD3BC(hidden=(HIDDEN, HIDDEN))
    a, c = layers(actor), layers(c1, c2)
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    state = state._replace(actor=a, critic=c, target_actor=a, target_critic=c)
    noise.serve()
    while True:
        batches = [data.batch(), data.batch()]
        drawn = [noise.normal(SIZE, n_act) for _ in batches]
        for b, z in zip(batches, drawn, strict=True):
            peer.torch.randn_like = lambda x, z=z: z
            theirs.train(corl_batch(b))
        noise.queue = list(drawn)
        state, _ = method.update(state, stacked([our_batch(b) for b in batches]), KEY)
        yield (
            2,
            {
                "actor": (state.actor, layers(actor)),
                "critic": (state.critic, layers(c1, c2)),
                "target_critic": (
                    state.target_critic,
                    layers(theirs.critic_1_target, theirs.critic_2_target),
                ),
                "target_actor": (state.target_actor, layers(theirs.actor_target)),
            },
        )


def iql(peer, data, noise, n_obs, n_act):
    from offbench.methods.iql import IQL

    actor, q, v = (
        peer.GaussianPolicy(n_obs, n_act, 1.0),
        peer.TwinQ(n_obs, n_act),
        peer.ValueFunction(n_obs),
    )
    actor.log_std.data = actor.log_std.data.double()
    theirs = peer.ImplicitQLearning(
        1.0,
        actor,
        adam(actor.parameters()),
        q,
        adam(q.parameters()),
        v,
        adam(v.parameters()),
        beta=3.0,
        max_steps=data.updates,
    )
    method = IQL(hidden=(HIDDEN, HIDDEN), actor_decay_steps=data.updates)
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    c = layers(q.q1, q.q2)
    start = state.actor | {"mean": layers(actor.net), "log_std": actor.log_std.detach().clone()}
    state = state._replace(actor=start, critic=c, target_critic=c, value=layers(v))
    noise.serve()
    while True:
        b = data.batch()
        theirs.train(corl_batch(b))
        state, _ = method.update(state, our_batch(b), KEY)
        yield (
            1,
            {
                "actor": (state.actor["mean"], layers(actor.net)),
                "log_std": (state.actor["log_std"], actor.log_std.detach()),
                "critic": (state.critic, layers(q.q1, q.q2)),
                "target_critic": (
                    state.target_critic,
                    layers(theirs.q_target.q1, theirs.q_target.q2),
                ),
                "value": (state.value, layers(v)),
            },
        )


def served_normals() -> list[torch.Tensor]:
    """What torch's distributions draw from then on, to be filled before every update."""
    import torch.distributions.normal as module

    served: list[torch.Tensor] = []
    module._standard_normal = lambda shape, dtype, device: served.pop(0)
    return served


def awac(peer, data, noise, n_obs, n_act):
    from offbench.methods.awac import AWAC

    actor = peer.Actor(n_obs, n_act, HIDDEN)
    actor._log_std.data = actor._log_std.data.double()
    c1, c2 = (peer.Critic(n_obs, n_act, HIDDEN) for _ in range(2))
    theirs = peer.AdvantageWeightedActorCritic(
        actor, adam(actor.parameters()), c1, adam(c1.parameters()), c2, adam(c2.parameters()),
        awac_lambda=1 / 3,
    )  # fmt: skip
    method = AWAC(hidden=(HIDDEN,) * 3, temperature=1 / 3)
    c = layers(c1, c2)
    start = {"mean": layers(actor), "log_std": actor._log_std.detach().clone()}
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    state = state._replace(actor=start, critic=c, target_critic=c)
    served = served_normals()
    noise.serve()
    while True:
        b, drawn = data.batch(), [noise.normal(SIZE, n_act) for _ in range(2)]
        served[:] = drawn
        theirs.update(corl_batch(b))
        noise.queue = list(drawn)
        state, _ = method.update(state, our_batch(b), KEY)
        yield (
            1,
            {
                "actor": (state.actor["mean"], layers(actor)),
                "log_std": (state.actor["log_std"], actor._log_std.detach()),
                "critic": (state.critic, layers(c1, c2)),
                "target_critic": (
                    state.target_critic,
                    layers(theirs._target_critic_1, theirs._target_critic_2),
                ),
            },
        )


def load_edac(folder: Path) -> types.SimpleNamespace:
    """The authors' trainer, networks and policy; what they log with is left out."""
    sys.path.insert(0, str(folder))
    for name in ("lifelong_rl.core.logging", "lifelong_rl.core.logging.logging", "gtimer"):
        sys.modules[name] = MagicMock()
    from lifelong_rl.models.networks import ParallelizedEnsembleFlattenMLP
    from lifelong_rl.policies.models.tanh_gaussian_policy import TanhGaussianPolicy
    from lifelong_rl.torch import distributions
    from lifelong_rl.trainers.q_learning.sac import SACTrainer

    return types.SimpleNamespace(
        Q=ParallelizedEnsembleFlattenMLP,
        Policy=TanhGaussianPolicy,
        Trainer=SACTrainer,
        TanhNormal=distributions.TanhNormal,
    )


def edac(peer, data, noise, n_obs, n_act, eta: float = 1.0, n: int = 5, best: bool = False):
    """Their log density has 1e-6 inside the logarithm, ours nothing; it is taken out here."""
    from offbench.methods.sac_n import SACN

    peer.TanhNormal.__init__.__defaults__ = (0.0,)
    sizes = [HIDDEN] * 3
    q, q_t = (peer.Q(n, sizes, input_size=n_obs + n_act, output_size=1).double() for _ in range(2))
    q_t.load_state_dict(q.state_dict())
    policy = peer.Policy(hidden_sizes=sizes, obs_dim=n_obs, action_dim=n_act).double()
    theirs = peer.Trainer(
        None, policy, q, q_t, target_entropy=-n_act, eta=eta, num_qs=n, max_q_backup=best
    )
    theirs.log_alpha.data = theirs.log_alpha.data.double()
    weight = eta if eta > 0 else None
    method = SACN(
        hidden=(HIDDEN,) * 3, n_critics=n, diversity_weight=weight, max_target_backup=best
    )

    def critics(net) -> list[dict]:
        return [
            {"w": x.W.detach().clone(), "b": x.b.detach().clone()} for x in (*net.fcs, net.last_fc)
        ]

    def actor() -> list[dict]:
        """The heads of mean and log-std are two layers there."""
        heads = [
            {"w": x.weight.detach().T.clone(), "b": x.bias.detach()[None].clone()}
            for x in (*policy.fcs, policy.last_fc, policy.last_fc_log_std)
        ]
        return [*heads[:-2], {k: torch.cat([heads[-2][k], heads[-1][k]], 1) for k in ("w", "b")}]

    c = critics(q)
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    state = state._replace(
        actor=actor(), critic=c, target_critic=c, log_temperature=torch.zeros(())
    )
    served: list[torch.Tensor] = []
    torch.distributions.normal.torch.normal = lambda mean, std: mean + std * served.pop(0)
    noise.serve()
    while True:
        b, here, after = data.batch(), noise.normal(SIZE, n_act), noise.normal(SIZE, n_act)
        many = noise.normal(SIZE, 10, n_act)
        served[:] = [here, after, many.flatten(0, 1)]
        t = dict(
            zip(
                ("observations", "actions", "rewards", "next_observations", "terminals"),
                corl_batch(b),
                strict=True,
            )
        )
        theirs.train_from_torch(t, None)
        noise.queue = [here, many.transpose(0, 1).flatten(0, 1) if best else after]
        state, _ = method.update(state, our_batch(b), KEY)
        yield (
            1,
            {
                "actor": (state.actor, actor()),
                "temperature": (state.log_temperature, theirs.log_alpha.detach()[0]),
                "critic": (state.critic, critics(q)),
                "target_critic": (state.target_critic, critics(q_t)),
            },
        )


def sac_n(*args):
    yield from edac(*args, eta=-1.0)


def edac_best(*args):
    yield from edac(*args, best=True)


def dt(peer, data, noise, n_obs, n_act, k: int = 20, width: int = 64, steps: int = 1000):
    """Windows of the file's rows, cut at random lengths. Without dropout, which draws otherwise."""
    from offbench.methods.dt import DT
    from offbench.types import Context

    net = peer.DecisionTransformer(
        n_obs, n_act, seq_len=k, episode_len=steps, embedding_dim=width, num_layers=2, num_heads=2
    )
    opt = torch.optim.AdamW(net.parameters(), lr=8e-4, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min((i + 1) / 50, 1))
    method = DT(
        width=width, layers=2, heads=2, dropout=0.0, lr=8e-4, warmup=50, loss_over="window",
        activation="gelu",
    )  # fmt: skip
    linear = lambda x: {"w": x.weight.detach().T.clone(), "b": x.bias.detach()[None].clone()}
    norm = lambda x: {
        "scale": x.weight.detach()[None].clone(),
        "shift": x.bias.detach()[None].clone(),
    }

    def params() -> dict:
        blocks = []
        for x in net.blocks:
            a = x.attention
            qkv = {
                "w": a.in_proj_weight.detach().T.clone(),
                "b": a.in_proj_bias.detach()[None].clone(),
            }
            blocks.append(
                {"norm1": norm(x.norm1), "qkv": qkv, "out": linear(a.out_proj),
                 "norm2": norm(x.norm2), "up": linear(x.mlp[0]), "down": linear(x.mlp[2])}
            )  # fmt: skip
        return {
            "return": linear(net.return_emb), "obs": linear(net.state_emb),
            "action": linear(net.action_emb), "time": net.timestep_emb.weight.detach().clone(),
            "norm": norm(net.emb_norm), "body": {"blocks": blocks, "norm": norm(net.out_norm)},
            "head": linear(net.action_head[0]),
        }  # fmt: skip

    from offbench.types import Spec

    state = method.init(rng.key(0), Spec(n_obs, n_act, 0.99, steps + k))._replace(params=params())
    column = lambda name: torch.tensor(data.columns[name])
    obs, action, reward = column("observations"), column("actions"), column("rewards")
    while True:
        row = torch.tensor(data.rng.integers(len(reward) - k, size=64))[:, None] + torch.arange(k)
        length = torch.tensor(data.rng.integers(1, k + 1, size=64))[:, None]
        time = torch.tensor(data.rng.integers(steps, size=64))[:, None] + torch.arange(k)
        mask = torch.arange(k) < length
        cut = lambda x, mask=mask: x * mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        to_go = reward[row].flip(1).cumsum(1).flip(1)
        window = Context(cut(obs[row]), cut(action[row]), cut(to_go), time, mask)
        predicted = net(
            states=window.obs, actions=window.action, returns_to_go=window.return_to_go,
            time_steps=time, padding_mask=~mask,
        )  # fmt: skip
        loss = ((predicted - window.action) ** 2 * mask[..., None]).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        opt.step()
        warmup.step()
        nothing = torch.zeros(64)
        batch = Batch(window, nothing, nothing, nothing, window, {})
        state, _ = method.update(state, batch, KEY)
        yield 1, {"params": (state.params, params())}


def samples(*drawn: torch.Tensor) -> torch.Tensor:
    """One draw (B, A) or several (B, K, A) at an observation, as ours: (n, B, A)."""
    return torch.cat([x.transpose(0, 1) if x.ndim == 3 else x[None] for x in drawn])


def cal_ql(peer, data, noise, n_obs, n_act):
    data.columns["returns"] = data.columns["rewards"] / (1 - 0.99)  # as large as values are
    yield from cql(peer, data, noise, n_obs, n_act, calibrated=True)


def cql(peer, data, noise, n_obs, n_act, k: int = 4, calibrated: bool = False):
    """Cal-QL with CORL's switches of antmaze, which CQL has too."""
    from offbench.methods.cql import CQL

    actor = peer.TanhGaussianPolicy(n_obs, n_act, 1.0)
    c1, c2 = (peer.FullyConnectedQFunction(n_obs, n_act, True, 3) for _ in range(2))
    for scalar in (actor.log_std_multiplier, actor.log_std_offset):
        scalar.constant.data = scalar.constant.data.double()
    cls = peer.CalQL if calibrated else peer.ContinuousCQL
    maze = {"cql_lagrange": True, "cql_target_action_gap": 0.8, "cql_max_target_backup": True, "cql_clip_diff_min": -200.0}  # fmt: skip
    theirs = cls(
        c1, adam(c1.parameters()), c2, adam(c2.parameters()), actor, adam(actor.parameters()),
        target_entropy=-n_act, bc_steps=0, cql_n_actions=k, cql_alpha=10.0,
        **(maze if calibrated else {}),
    )  # fmt: skip
    for scalar in (theirs.log_alpha, theirs.log_alpha_prime):
        scalar.constant.data = scalar.constant.data.double()
    switches = {"calibrated": True, "lagrange": True, "target_gap": 0.8, "max_target_backup": True, "clip_diff_min": -200.0}  # fmt: skip
    method = CQL(
        hidden=(HIDDEN,) * 3, n_actions=k, actor_lr=3e-4, conservative_weight=10.0,
        **(switches if calibrated else {}),
    )  # fmt: skip
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    c = layers(c1, c2)
    one = torch.ones(())
    state = state._replace(
        actor={"net": layers(actor.base_network), "log_std_scale": one.clone(), "log_std_shift": -one.clone()},
        critic=c, target_critic=c, log_temperature=torch.zeros(()), log_multiplier=torch.ones(()),
    )  # fmt: skip
    served = served_normals()
    fill = torch.Tensor.uniform_
    noise.serve()
    while True:
        b = data.batch()
        new = noise.normal(SIZE, n_act)
        after = noise.normal(SIZE, k, n_act) if calibrated else noise.normal(SIZE, n_act)
        here_k, after_k = noise.normal(SIZE, k, n_act), noise.normal(SIZE, k, n_act)
        u = noise.uniform(k, SIZE, n_act)
        served[:] = [new, after, here_k, after_k]
        torch.Tensor.uniform_ = lambda self, low, high, u=u: self.copy_(
            low + (high - low) * u.transpose(0, 1)
        )
        returns = [torch.tensor(b["returns"])[:, None]] if calibrated else []
        theirs.train(corl_batch(b) + returns)
        torch.Tensor.uniform_ = fill
        noise.queue = [samples(new, here_k), samples(after, after_k), u]
        state, _ = method.update(state, our_batch(b), KEY)
        yield (
            1,
            {
                "actor": (state.actor["net"], layers(actor.base_network)),
                "log_std_scale": (
                    state.actor["log_std_scale"],
                    actor.log_std_multiplier.constant.detach(),
                ),
                "log_std_shift": (
                    state.actor["log_std_shift"],
                    actor.log_std_offset.constant.detach(),
                ),
                "temperature": (state.log_temperature, theirs.log_alpha.constant.detach()),
                "multiplier": (state.log_multiplier, theirs.log_alpha_prime.constant.detach()),
                "critic": (state.critic, layers(c1, c2)),
                "target_critic": (
                    state.target_critic,
                    layers(theirs.target_critic_1, theirs.target_critic_2),
                ),
            },
        )


def rebrac(peer, data, noise, n_obs, n_act, beta: float = 0.1):
    import jax
    import jax.numpy as jnp

    from offbench.methods.rebrac import ReBRAC

    jax.config.update("jax_enable_x64", True)
    actor_net = peer.DetActor(n_act, HIDDEN, False, 3)
    critic_net = peer.EnsembleCritic(HIDDEN, 2, True, 3)
    s, a = jnp.zeros((1, n_obs)), jnp.zeros((1, n_act))
    double = lambda t: jax.tree_util.tree_map(lambda x: x.astype(jnp.float64), t)
    tx = peer.optax.adam(1e-3)

    def start(cls, net, *args):
        p = double(net.init(jax.random.PRNGKey(0), *args))
        return cls.create(apply_fn=net.apply, params=p, target_params=p, tx=tx)

    actor = start(peer.ActorTrainState, actor_net, s)
    critic = start(peer.CriticTrainState, critic_net, s, a)

    def ours(params) -> list[dict]:
        """Flax's nested dict as our list of layers."""
        flat: dict[str, dict] = {}

        def walk(node):
            for name, child in node.items():
                if "kernel" in child or "scale" in child:
                    flat[name] = {k: torch.tensor(np.asarray(v)) for k, v in child.items()}
                else:
                    walk(child)

        walk(params["params"])
        # Sequential numbers its members: Dense are those with a kernel, in order
        order = sorted(flat, key=lambda n: int(n.rsplit("_", 1)[1]))
        made: list[dict] = []
        for name in order:
            x = flat[name]
            if "kernel" in x:
                made.append({"w": x["kernel"], "b": x["bias"][..., None, :]})
            else:
                made[-1] |= {"scale": x["scale"][..., None, :], "shift": x["bias"][..., None, :]}
        return made

    method = ReBRAC(hidden=(HIDDEN,) * 3, actor_bc_weight=beta, critic_bc_weight=beta)
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    first_a, first_c = ours(actor.params), ours(critic.params)
    state = state._replace(
        actor=first_a, critic=first_c, target_actor=first_a, target_critic=first_c
    )
    metrics = peer.Metrics.create(
        ["critic_loss", "q_min", "actor_loss", "bc_mse_policy", "bc_mse_random", "action_mse"]
    )
    names = {"states": "observations", "actions": "actions", "rewards": "rewards", "dones": "terminals",
             "next_states": "next_observations", "next_actions": "next_actions"}  # fmt: skip
    served: list[np.ndarray] = []
    jax.random.normal = lambda key, shape: jnp.asarray(served.pop(0))
    key = jax.random.PRNGKey(0)
    common = {"gamma": 0.99, "actor_bc_coef": beta, "critic_bc_coef": beta, "tau": 0.005, "policy_noise": 0.2,
              "noise_clip": 0.5, "metrics": metrics}  # fmt: skip
    noise.serve()
    while True:
        batches = [data.batch(), data.batch()]
        drawn = [noise.normal(SIZE, n_act) for _ in batches]
        served[:] = [z.numpy() for z in drawn]
        jb = [{k: jnp.asarray(b[v]) for k, v in names.items()} for b in batches]
        _, actor, critic, _ = peer.update_td3(key, actor, critic, jb[0], normalize_q=True, **common)
        _, actor, critic, _ = peer.update_td3_no_targets(key, actor, critic, jb[1], **common)
        noise.queue = list(drawn)
        state, _ = method.update(state, stacked([our_batch(b) for b in batches]), KEY)
        yield (
            2,
            {
                "actor": (state.actor, ours(actor.params)),
                "critic": (state.critic, ours(critic.params)),
                "target_actor": (state.target_actor, ours(actor.target_params)),
                "target_critic": (state.target_critic, ours(critic.target_params)),
            },
        )


def _spec(n_obs: int, n_act: int):
    from offbench.types import Spec

    return Spec(n_obs, n_act, 0.99, 1000)


METHODS = {
    "any_percent_bc": bc, "td3_bc": td3_bc, "iql": iql, "cql": cql, "rebrac": rebrac, "awac": awac,
    "dt": dt, "cal_ql": cal_ql, "sac_n": sac_n, "edac": edac, "edac_best": edac_best,
}  # fmt: skip
AUTHORS = ("sac_n", "edac", "edac_best")  # compared with the authors' code
CODE = {True: "snu-mllab/EDAC 198d570", False: "CORL eeeeef2"}  # what README.md names
FINETUNE = ("cal_ql",)  # CORL has it in the neighbouring folder

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=METHODS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--corl", type=Path, help="CORL/algorithms/offline")
    parser.add_argument("--edac", type=Path, help="a checkout of snu-mllab/EDAC")
    parser.add_argument("--updates", type=int, default=1000)
    given = parser.parse_args()
    data = Data(given.data, given.updates)
    n_obs, n_act = (data.columns[k].shape[1] for k in ("observations", "actions"))
    torch.manual_seed(0)
    if given.algorithm in AUTHORS:
        peer = load_edac(given.edac)
    else:
        folder = given.corl.parent / "finetune" if given.algorithm in FINETUNE else given.corl
        peer = load(given.algorithm, folder, HIDDEN, {})
    done, first = 0, None
    for n, pairs in METHODS[given.algorithm](peer, data, Noise(), n_obs, n_act):
        done += n
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if done >= given.updates:
            break
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    method = given.algorithm.removeprefix("any_percent_")
    about = f"{method},{CODE[given.algorithm in AUTHORS]},{data.task},{done}"
    for name, (ours, theirs) in pairs.items():
        gap, moved = far(ours, theirs), far(theirs, first[name])
        print(f"{about},{name},{gap:.1e},{moved:.1e}")
