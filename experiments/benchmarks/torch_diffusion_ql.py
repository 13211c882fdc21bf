"""Diffusion-QL in PyTorch, as one would write it: the reference of `llmdpd bench train` and `llmdpd bench sample`.

The same networks, losses and update as `llmdpd_jax.agents.diffusion_ql` without a context, in eager mode: fused Mish
and AdamW, in-place slow copies, no gradient that nobody needs. Needs the extra `parity`.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdpd_jax.bench.peak import flops_per_second, matmul_size

ACTIVATIONS = {"mish": F.mish, "relu": F.relu}
BETA_MIN, BETA_MAX = 0.1, 10.0


def step_embedding(k: Tensor, size: int = 16) -> Tensor:
    """Sinusoidal embedding of diffusion steps: [...] -> [..., size]."""
    frequency = torch.exp(-np.log(10_000.0) * torch.arange(size // 2, device=k.device) / (size // 2 - 1))
    angles = k[..., None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Denoiser(nn.Module):
    """Residual MLP: noised action [B, A], diffusion step [B], observation [B, O] -> clean action [B, A]."""

    def __init__(self, observation_size: int, action_size: int, width: int, depth: int, activation: str):
        super().__init__()
        self.first = nn.Linear(action_size + observation_size + 16, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth - 1)])
        self.out = nn.Linear(width, action_size)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, k: Tensor, observation: Tensor) -> Tensor:
        hidden = self.first(torch.cat([x, observation, step_embedding(k)], dim=-1))
        for layer in self.hidden:
            hidden = hidden + layer(self.activation(hidden))
        return self.out(self.activation(hidden))


class Critic(nn.Module):
    """Q: observation [B, O], action [B, A] -> [B]."""

    def __init__(self, observation_size: int, action_size: int, width: int, depth: int, activation: str, norm: bool):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(observation_size + action_size, width)])
        self.layers.extend(nn.Linear(width, width) for _ in range(depth - 1))
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity() for _ in range(depth)])
        self.out = nn.Linear(width, 1)
        self.activation = ACTIVATIONS[activation]

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        hidden = torch.cat([observation, action], dim=-1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = self.activation(norm(layer(hidden)))
        return self.out(hidden)[..., 0]


class TorchDiffusionQL:
    """One side of a comparison (`llmdpd_jax.bench.workers.Side`).

    Args:
      file: .npz of the batch, the parameters and one set of random draws.
      improvement: "one_step" (EDP), or "full_chain" (Diffusion-QL).
      updates: of one run; 0: a run draws actions instead.
      batch, calls: how many actions a call draws, and how many calls a run makes.
    """

    def __init__(
        self,
        file: str,
        improvement: str,
        settings: dict,
        updates: int,
        batch: int,
        calls: int,
        threads: int,
        device: str,
    ):
        torch.set_num_threads(threads)
        self.device, self.improvement, self.updates, self.calls = device, improvement, updates, calls
        self.settings, self.steps = settings, settings["steps"]
        arrays = dict(np.load(Path(file)))
        self.data = self.tensors(arrays, "batch/")
        self.draws = self.tensors(arrays, "draw/")
        sizes = self.data["observations"].shape[-1], self.data["actions"].shape[-1]
        shape = *sizes, settings["width"], settings["depth"]
        self.denoiser = Denoiser(*shape, settings["denoiser_activation"])
        critic = settings["critic_activation"], settings["critic_layer_norm"]
        self.critics = nn.ModuleList([Critic(*shape, *critic) for _ in range(2)])
        self.load(arrays)
        self.denoiser, self.critics = self.denoiser.to(device), self.critics.to(device)
        self.slow_denoiser, self.slow_critics = copy.deepcopy(self.denoiser), copy.deepcopy(self.critics)
        self.params = [*self.denoiser.parameters(), *self.critics.parameters()]
        rate = settings["learning_rate"]
        self.optimiser = torch.optim.AdamW(self.params, lr=rate, weight_decay=0.0, fused=True)

        # DDPM (Ho et al. 2020) with the variances of the VP schedule: x0 -> mean and deviation of the step before.
        i = np.arange(1, self.steps + 1) / self.steps
        signal = np.exp(-BETA_MIN * i - 0.5 * (BETA_MAX - BETA_MIN) * i**2)
        before = np.append(1.0, signal[:-1])
        alpha = signal / before
        self.signal = torch.tensor(signal, dtype=torch.float32, device=device)
        self.of_x0 = (np.sqrt(before) * (1 - alpha) / (1 - signal)).tolist()
        self.of_x = (np.sqrt(alpha) * (1 - before) / (1 - signal)).tolist()
        self.deviation = np.sqrt((1 - alpha) * (1 - before) / (1 - signal)).tolist()
        # DDIM (Song et al. 2021), eta 0.
        keep = np.sqrt((1 - before) / (1 - signal))
        self.ddim_x, self.ddim_x0 = keep.tolist(), (np.sqrt(before) - keep * np.sqrt(signal)).tolist()
        generator = torch.Generator().manual_seed(0)
        self.seen = torch.randn(batch, sizes[0], generator=generator).to(device)

    def tensors(self, arrays: dict, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin so, on the device."""
        chosen = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return {name: torch.tensor(array, device=self.device) for name, array in chosen.items()}

    def load(self, arrays: dict) -> None:
        """Fills the networks with the Flax networks' parameters; layers that read one input each become one."""

        def fill(layer: nn.Linear, names: list[str], member: int | None = None) -> None:
            kernels = [arrays[f"{name}/kernel"] for name in names]
            biases = [arrays[f"{name}/bias"] for name in names if f"{name}/bias" in arrays]
            if member is not None:
                kernels, biases = [k[member] for k in kernels], [b[member] for b in biases]
            layer.weight.data = torch.tensor(np.concatenate(kernels).T.copy())
            layer.bias.data = torch.tensor(sum(biases))

        parts = [f"param/denoiser/{name}" for name in ("action", "observation", "step")]
        fill(self.denoiser.first, parts)
        for i, layer in enumerate(self.denoiser.hidden):
            fill(layer, [f"param/denoiser/hidden_{i}"])
        fill(self.denoiser.out, ["param/denoiser/out"])
        for member, critic in enumerate(self.critics):
            names = ["input", *[f"hidden_{i}" for i in range(1, len(critic.layers))], "out"]
            for layer, name in zip([*critic.layers, critic.out], names, strict=True):
                fill(layer, [f"param/critic/members/{name}"], member)

    # --- the method --------------------------------------------------------------------------------------------------
    def predict(self, denoiser: nn.Module, x: Tensor, k: Tensor, observation: Tensor) -> Tensor:
        """Clean actions, within the bounds."""
        return denoiser(x, k, observation).clamp(-1.0, 1.0)

    def chain(self, denoiser: nn.Module, observation: Tensor, start: Tensor, noises: Tensor) -> Tensor:
        """Actions by ancestral sampling."""
        x = start
        for step, noise in zip(reversed(range(self.steps)), noises, strict=True):
            k = torch.full((len(x),), float(step + 1), device=x.device)
            x = self.of_x0[step] * self.predict(denoiser, x, k, observation) + self.of_x[step] * x
            if step > 0:
                x = x + self.deviation[step] * noise
        return x

    def new_draws(self) -> dict[str, Tensor]:
        """Random numbers of one update."""
        shape = self.data["actions"].shape
        draws = {
            "k": torch.randint(1, self.steps + 1, shape[:1], device=self.device),
            "noise": torch.randn(shape, device=self.device),
            "next_start": torch.randn(shape, device=self.device),
            "next_noises": torch.randn((self.steps, *shape), device=self.device),
        }
        if self.improvement == "full_chain":
            draws["chain_start"] = torch.randn(shape, device=self.device)
            draws["chain_noises"] = torch.randn((self.steps, *shape), device=self.device)
        return draws

    def loss(self, draws: dict[str, Tensor]) -> Tensor:
        """Cloning, Q of the policy's actions and temporal difference; all gradients in one backward pass."""
        s, data = self.settings, self.data
        observations, actions = data["observations"], data["actions"]
        signal = self.signal[draws["k"] - 1][:, None]
        x = signal.sqrt() * actions + (1 - signal).sqrt() * draws["noise"]
        output = self.denoiser(x, draws["k"].float(), observations)
        cloning = F.mse_loss(output, actions)

        if self.improvement == "full_chain":
            acted = self.chain(self.denoiser, observations, draws["chain_start"], draws["chain_noises"])
        else:
            acted = output.clamp(-1.0, 1.0)
        fixed = {name: parameter.detach() for name, parameter in self.critics[0].named_parameters()}
        q = torch.func.functional_call(self.critics[0], fixed, (observations, acted))
        policy = -q.mean() / q.abs().mean().detach()

        with torch.no_grad():
            following = data["next_observations"]
            sampled = self.chain(self.slow_denoiser, following, draws["next_start"], draws["next_noises"])
            value = torch.min(*(critic(following, sampled) for critic in self.slow_critics))
            target = data["rewards"] + s["discount"] * (1.0 - data["terminations"]) * value
        critic = sum(F.mse_loss(critic(observations, actions), target) for critic in self.critics) / 2
        return s["cloning_weight"] * cloning + s["eta"] * policy + s["critic_weight"] * critic

    def update(self) -> None:
        """One gradient step; then the slow copies follow."""
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(self.new_draws()).backward()
        nn.utils.clip_grad_norm_(self.params, self.settings["clip_norm"], foreach=True)
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast, rate in (
                (self.slow_critics, self.critics, self.settings["tau"]),
                (self.slow_denoiser, self.denoiser, 1.0 - self.settings["ema_decay"]),
            ):
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), rate)

    def act(self, observation: Tensor) -> np.ndarray:
        """Actions [B, A] in host memory, by DDIM."""
        with torch.inference_mode():
            x = torch.randn((len(observation), self.data["actions"].shape[-1]), device=self.device)
            for step in reversed(range(self.steps)):
                k = torch.full((len(x),), float(step + 1), device=x.device)
                x0 = self.predict(self.denoiser, x, k, observation)
                x = self.ddim_x[step] * x + self.ddim_x0[step] * x0
            return x.cpu().numpy()

    # --- as a side ---------------------------------------------------------------------------------------------------
    def facts(self) -> dict:
        """None."""
        return {}

    def run(self) -> None:
        """The updates, or calls for actions."""
        for _ in range(self.updates):
            self.update()
        for _ in range(self.calls if not self.updates else 0):
            self.act(self.seen)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def result(self, layer: None) -> np.ndarray:
        """The loss and its gradients by all weight matrices, in the order of the Flax side, for the file's draws."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.draws)
        loss.backward()
        found = [loss.detach().reshape(1)]

        # The Flax denoiser has a layer for each of its inputs, and its critics' layers are stacked.
        observation_size, action_size = self.data["observations"].shape[-1], self.data["actions"].shape[-1]
        found += self.denoiser.first.weight.grad.T.split([action_size, observation_size, 16])
        found += [layer.weight.grad.T for layer in (*self.denoiser.hidden, self.denoiser.out)]
        for layers in zip(*([*critic.layers, critic.out] for critic in self.critics), strict=True):
            found.append(torch.stack([layer.weight.grad.T for layer in layers]))
        self.optimiser.zero_grad(set_to_none=True)
        return torch.cat([part.reshape(-1) for part in found]).cpu().numpy()

    def matmul(self) -> float:
        """FLOP/s of one large matrix product."""
        size = matmul_size(self.device)
        matrix = torch.ones((size, size), device=self.device)
        with torch.inference_mode():
            return flops_per_second(lambda: (matrix @ matrix)[0, 0].item(), size)
