"""Adam for bfloat16 weights whose small steps are not lost: the only state in float32 is that of the moments."""

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 2**22  # elements worked on at a time: bounds the float32 copies, whatever the size of the embedding


class RoundedAdam:
    """Adam (Kingma & Ba, arXiv 1412.6980) in float32; each new weight is rounded to bfloat16, up or down, by chance.

    A bfloat16 keeps 8 bits: near 0.02 the next one is 1e-4 away, and a step of 1e-6 rounded to nearest would never
    happen. Rounded up with the probability of how far it has come, it happens on average (Gupta et al., 1502.02551).
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float = 1e-8):
        self.parameters, self.lr, self.betas, self.eps, self.steps = list(parameters), lr, betas, eps, 0
        self.moments = [torch.zeros(2, p.numel(), device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        (b1, b2), n = self.betas, self.steps
        noise = torch.Generator(self.parameters[0].device).manual_seed(n)  # a resumed run rounds as it would have
        for p, moments in zip(self.parameters, self.moments):
            if p.grad is None:
                continue
            parts = p.view(-1).split(CHUNK), p.grad.reshape(-1).split(CHUNK), *(m.split(CHUNK) for m in moments)
            for weight, gradient, mean, square in zip(*parts):
                gradient = gradient.float()
                mean.lerp_(gradient, 1 - b1)
                square.lerp_(gradient * gradient, 1 - b2)
                move = mean / (1 - b1**n) / ((square / (1 - b2**n)).sqrt() + self.eps)
                weight.copy_(round_by_chance(weight.float() - self.lr * move, noise))

    def state_dict(self) -> dict:
        return {"steps": self.steps, "moments": self.moments}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for mine, saved in zip(self.moments, state["moments"], strict=True):
            mine.copy_(saved)


def round_by_chance(x: Tensor, noise: torch.Generator) -> Tensor:
    """float32 -> bfloat16, to one of the two neighbours with probabilities that keep the mean (exact values stay)."""
    bits = x.view(torch.int32)  # a bfloat16 is the upper half of a float32
    chance = torch.randint(2**16, x.shape, device=x.device, dtype=torch.int32, generator=noise)
    return ((bits + chance) & -(2**16)).view(torch.float32).bfloat16()


Optimizer = torch.optim.Optimizer | RoundedAdam
