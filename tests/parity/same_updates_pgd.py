"""The same question as same_updates.py, asked of the diffusion model of policy-guided diffusion and its authors' JAX code.

    python tests/parity/same_updates_pgd.py pgd FOLDER/TASK.npz --code POLICY-GUIDED-DIFFUSION

POLICY-GUIDED-DIFFUSION is a checkout of EmptyJackson/policy-guided-diffusion. Needs jax, flax, distrax and optax beside
torch. Both sides have the same windows, noise levels and noise. The part `sample` is a guided sample of both from the same noise without the noise that is added
on the way, as their first half step leaves that out (`offbench.synthetic.diffusion`).
"""

import argparse
import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from same_updates import KEY, Data, clone, far

from offbench.synthetic import diffusion
from offbench.synthetic.diffusion import Denoiser, Model, Scale, State
from offbench.training.fitting import Fit

CODE = "EmptyJackson/policy-guided-diffusion 9da606c"
COEFFICIENT = 0.7


class Drawn:
    """Random numbers in the place of those of a key."""

    def __init__(self, levels, noise):
        self.levels, self.noise = levels, noise

    def split(self, key):
        return None, None

    def normal(self, key, shape, dtype):
        return self.levels

    def normal_like(self, key, x):
        return self.noise


def number(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x))


def dense(p) -> dict:
    kernel = number(p["kernel"])
    return {"w": kernel.reshape(-1, kernel.shape[-1]), "b": number(p["bias"])[None]}


def normed(conv, norm) -> dict:
    own = {"scale": number(norm["scale"])[None], "shift": number(norm["bias"])[None]}
    return dense(conv) | own


def as_ours(params, levels: int) -> dict:
    """Their U-Net's weights as ours."""
    p = params["params"]
    time, enc, dec = p["TimeEmbedding_0"], p["Encoder_0"], p["Decoder_0"]
    conv = lambda part, i: normed(part[f"Conv_{i}"], part[f"GroupNorm_{i}"])
    return {
        "time": [dense(time["Dense_0"]), dense(time["Dense_1"])],
        "down": [
            {"time": dense(enc[f"Dense_{i}"]), "convs": [conv(enc, 2 * i), conv(enc, 2 * i + 1)]}
            for i in range(levels)
        ],
        "up": [
            {
                "time": dense(dec[f"Dense_{i}"]),
                "rise": conv(dec, 3 * i),
                "convs": [conv(dec, 3 * i + 1), conv(dec, 3 * i + 2)],
            }
            for i in range(levels - 1)
        ],
        "out": dense(dec[f"Conv_{3 * (levels - 1)}"]),
    }


def load(code: Path):
    sys.path.insert(0, str(code))
    for name in ("wandb", "gym", "gym.spaces", "util.logging", "util.eval"):
        sys.modules[name] = MagicMock(__all__=[])
    return importlib.import_module("diffusion.diffusion")


def arguments(settings: Denoiser) -> SimpleNamespace:
    return SimpleNamespace(
        num_features=settings.features, num_blocks=settings.levels, batch_size=settings.batch_size,
        num_epochs=1, lr=settings.lr, diffusion_method="edm", edm_p_mean=-1.2, edm_p_std=1.2, edm_sigma_data=1.0,
        edm_sigma_min=0.002, edm_sigma_max=80.0, edm_rho=7.0, edm_first_order=not settings.second_order,
        diffusion_timesteps=settings.steps, edm_s_tmin=0.05, edm_s_tmax=50.0, edm_s_churn=0.0, edm_s_noise=1.003,
        ema_decay=settings.average, ema_update_every=10,
    )  # fmt: skip


def their_draws(key, shape):
    """The noise levels and noise of their train_step."""
    import jax

    levels, noise = [], []
    for k in jax.random.split(key, shape[0]):
        k, k_sigma = jax.random.split(k)
        levels.append(jax.random.normal(k_sigma))
        k, k_noise = jax.random.split(k)
        noise.append(jax.random.normal(k_noise, shape=shape[1:]))
    return number(levels), number(noise)


def main(given) -> None:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    tree = jax.tree_util.tree_map
    code = load(given.code)
    settings = Denoiser(
        length=16, features=32, levels=3, n_updates=given.updates, batch_size=32, steps=24
    )
    data = Data(given.data, given.updates)
    obs, action, reward = (data.columns[k] for k in ("observations", "actions", "rewards"))
    steps = np.concatenate([obs, np.arctanh(action.clip(-0.999, 0.999)), reward[:, None]], 1)
    steps = np.concatenate([steps, data.columns["terminals"][:, None]], 1)
    n_obs, n_act = obs.shape[1], action.shape[1]
    mean, std = steps.mean(0), steps.std(0)
    std[std == 0] = 1.0
    steps = (steps - mean) / std

    n_windows = given.updates * settings.batch_size
    args = arguments(settings)
    schedule = code.optax.warmup_cosine_decay_schedule
    # its counts are float32 where the rest is float64, and 1e-8 of a rate grows to 1e-3 of a weight in 20 updates
    code.optax.warmup_cosine_decay_schedule = lambda **given: (
        lambda count: schedule(**given)(count.astype(jnp.float64))
    )
    theirs = code.create_denoiser_train_state(jax.random.PRNGKey(0), n_obs, n_act, args, n_windows)
    double = tree(lambda x: x.astype(jnp.float64), theirs.params)
    theirs = theirs.replace(params=double, opt_state=theirs.tx.init(double))
    averaged, train_step = double, code.make_train_step(args)
    average = importlib.import_module("util.jax").ema_update
    own = as_ours(double, settings.levels)
    state, first = State(Fit.start(own), own), clone(own)
    real = diffusion.rng
    step = jax.jit(lambda key, batch, state: train_step(key, batch, state))
    for i in range(given.updates):
        start = data.rng.integers(len(steps) - settings.length, size=settings.batch_size)
        window = steps[start[:, None] + np.arange(settings.length)]
        key = jax.random.PRNGKey(i)
        theirs, _ = step(key, jnp.asarray(window), theirs)
        averaged = average(args, theirs, theirs.replace(params=averaged))
        diffusion.rng = Drawn(*their_draws(key, window.shape))
        state, _ = diffusion.learn(settings, state, torch.tensor(window), KEY)
    diffusion.rng = real

    side = lambda params: as_ours(params, settings.levels)
    pairs = {
        "network": (state.fit.net, side(theirs.params)),
        "average": (state.average, side(averaged)),
    }
    scale = Scale(*map(torch.tensor, (mean, std, mean - 1e9 * std, mean + 1e9 * std)))
    model = Model(side(averaged), scale, settings, n_obs)
    pairs["sample"] = samples(model, theirs.replace(params=averaged), code, args)
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    for name, (mine, other) in pairs.items():
        gap = far(mine, other)
        moved = float(other.abs().max()) if name == "sample" else far(other, first)
        print(f"pgd,{CODE},{data.task},{given.updates},{name},{gap:.1e},{moved:.1e}")


def samples(model: Model, theirs, code, args):
    """(ours, theirs): observations and actions of a guided window from the same noise."""
    import jax
    import jax.numpy as jnp

    n_obs, n = model.obs_dim, len(model.scale.mean)
    weights = np.random.default_rng(1).normal(size=(n_obs, n - n_obs - 2)) / math.sqrt(n_obs)
    agent = lambda params, obs: SimpleNamespace(sample=lambda seed: jnp.tanh(obs @ params))
    part = lambda a, b: {
        "mean": jnp.asarray(model.scale.mean[a:b]),
        "std": jnp.asarray(model.scale.std[a:b]),
    }
    stats = {
        "obs": part(0, n_obs),
        "action": part(n_obs, n - 2),
        "reward": part(n - 2, n - 1),
        "done": part(n - 1, n),
    }
    draw = code.make_sample_fn(args, False, False, True)
    key = jax.random.PRNGKey(5)
    rolled = draw(
        rng=key, denoiser_state=theirs, seq_len=model.settings.length, obs_dim=n_obs, action_dim=n - n_obs - 2,
        denoiser_norm_stats=stats, policy_guidance_coeff=COEFFICIENT, policy_guidance_cosine_coeff=0.3,
        agent_apply_fn=agent, agent_params=jnp.asarray(weights),
    )  # fmt: skip
    noise = jax.random.normal(jax.random.split(key)[1], (model.settings.length, n))
    diffusion._CHURN = 0.0
    diffusion.rng = SimpleNamespace(
        normal_formula=lambda key, shape, dtype: number(noise)[None, None], fold=lambda key, i: key
    )
    policy = lambda obs: torch.tanh(obs @ torch.tensor(weights))
    with torch.no_grad():
        x = model.sample(KEY[None], 1, model.guide(policy, COEFFICIENT))
        ours = model.decode(x)
    flat = lambda obs, action: torch.cat([number(obs), number(action)], -1)
    return flat(ours.obs[0, 0, :-1], ours.action[0, 0, :-1]), flat(rolled.obs, rolled.action)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=["pgd"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=100)
    main(parser.parse_args())
