"""ACSAC on a table in the place of its critic, and a flow whose chunks are known."""

import torch

from offbench.methods.acsac import ACSAC


class Table(ACSAC):
    """ACSAC whose critic is a table over (state, signs of the actions so far)."""

    def _q(self, critic, obs, action, network=None):
        s, right = obs.argmax(-1), (action > 0).long()  # (B,), (B, N, H)
        values, code = [], torch.zeros_like(right[..., 0])
        for h in range(right.shape[-1]):
            code = 2 * code + right[..., h]
            values.append(critic[h][:, s[:, None], code])  # (2, B, N)
        return torch.stack(values, -1)


def signs(n_obs: int, h: int):
    """A flow that carries noise to its signs: every chunk of -1s and 1s, equally often.

    gelu(x) - gelu(-x) = x, so one hidden layer of pairs makes the velocity 40 times where it is.
    """
    w = torch.zeros(n_obs + h + 1, 2 * h, dtype=torch.float64)
    out = torch.zeros(2 * h, h, dtype=torch.float64)
    for i in range(h):
        w[n_obs + i, 2 * i], w[n_obs + i, 2 * i + 1] = 1.0, -1.0
        out[2 * i, i], out[2 * i + 1, i] = 40.0, -40.0
    zeros = lambda n: torch.zeros(1, n, dtype=torch.float64)
    return [{"w": w, "b": zeros(2 * h)}, {"w": out, "b": zeros(h)}]
