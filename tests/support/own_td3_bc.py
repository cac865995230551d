"""TD3+BC as one writes it in PyTorch: modules, optimisers and a counter. The tests train it as it stands."""

import copy
import time

import torch
import torch.nn.functional as F
from torch import nn


def mlp(n_in: int, n_out: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_out),
    )


class Twins(nn.Module):
    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.q1, self.q2 = mlp(n_in, 1, width), mlp(n_in, 1, width)

    def forward(self, obs, action):
        x = torch.cat([obs, action], 1)
        return self.q1(x)[:, 0], self.q2(x)[:, 0]


class OwnTD3BC:
    def __init__(
        self,
        obs_dim,
        action_dim,
        device="cpu",
        width=256,
        lr=3e-4,
        alpha=2.5,
        tau=0.005,
        policy_noise=0.2,
        noise_clip=0.5,
        policy_freq=2,
    ):
        self.actor = mlp(obs_dim, action_dim, width).to(device)
        self.critic = Twins(obs_dim + action_dim, width).to(device)
        self.actor_target, self.critic_target = (
            copy.deepcopy(self.actor),
            copy.deepcopy(self.critic),
        )
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), lr)
        self.critic_opt = torch.optim.Adam(self.critic.parameters(), lr)
        self.alpha, self.tau, self.policy_freq = alpha, tau, policy_freq
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
        self.updates = 0

    def train_step(self, batch):
        self.updates += 1
        with torch.no_grad():
            noise = (self.policy_noise * torch.randn_like(batch.action)).clamp(
                -self.noise_clip, self.noise_clip
            )
            next_action = (self.actor_target(batch.next_obs).tanh() + noise).clamp(-1, 1)
            target = batch.reward + batch.discount * torch.min(
                *self.critic_target(batch.next_obs, next_action)
            )
        q1, q2 = self.critic(batch.obs, batch.action)
        critic_loss = F.mse_loss(q1, target) + F.mse_loss(q2, target)
        self.critic_opt.zero_grad()
        critic_loss.backward()
        self.critic_opt.step()
        found = {"critic_loss": critic_loss.item(), "q": q1.mean().item()}
        if self.updates % self.policy_freq == 0:
            action = self.actor(batch.obs).tanh()
            q = self.critic(batch.obs, action)[0]
            actor_loss = (
                F.mse_loss(action, batch.action) - self.alpha * q.mean() / q.abs().mean().detach()
            )
            self.actor_opt.zero_grad()
            actor_loss.backward()
            self.actor_opt.step()
            found["actor_loss"] = actor_loss.item()
            with torch.no_grad():
                for net, target in (
                    (self.actor, self.actor_target),
                    (self.critic, self.critic_target),
                ):
                    for p, t in zip(net.parameters(), target.parameters()):
                        t.lerp_(p, self.tau)
        return found

    def act(self, obs):
        return self.actor(obs).tanh()


class Thinks(OwnTD3BC):
    """Takes its time to act, in which nothing else may draw."""

    def act(self, obs):
        time.sleep(0.002)
        return super().act(obs)
