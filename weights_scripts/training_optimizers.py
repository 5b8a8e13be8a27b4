"""The optimizer of train_default.py, and the learning rate at each step.

The matrices of the blocks are trained with Muon (Jordan et al. 2024: momentum, made orthogonal), embedding and norms
with AdamW. The learning rate warms up, stays constant, and falls linearly to zero over the last 45 %.
"""

import torch

MUON_RATE, ADAM_RATE = 0.02, 4e-3
FURTHER_RATE = 0.3  # of the learning rates, for a model that is trained further


def rate_factor(step: int, steps: int) -> float:
    """Factor of the learning rates: warm-up, constant, then linear to zero over the last 45 %."""
    return min(1.0, (step + 1) / 60, (steps - step) / (0.45 * steps))


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the step is the momentum, made nearly orthogonal.

    Differs from torch.optim.Muon: orthogonal in float32. That one computes in bfloat16, which a processor without such
    instructions does ten times slower; a step of the default model then waits longer for it than for all gradients.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        """Roughly U V^T of a matrix U S V^T: five Newton-Schulz steps bring its singular values to 0.7 .. 1.2."""
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.T if tall else x

    @torch.no_grad()
    def step(self) -> None:
        """One step, with Nesterov's momentum; it is larger for matrices with more rows than columns."""
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mean = self.state[p]["momentum_buffer"]
                mean.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(mean, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.sub_(group["lr"] * scale * self.orthogonal(ahead))


Optimizers = tuple[Muon, torch.optim.AdamW]


def make_optimizers(model: torch.nn.Module) -> Optimizers:
    """Muon for the matrices of the blocks, AdamW for embedding and norms."""
    in_blocks = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    others = [p for n, p in model.named_parameters() if n not in in_blocks]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return Muon(in_blocks.values(), lr=MUON_RATE), adam


def set_rates(optimizers: Optimizers, factor: float, further: bool) -> None:
    """Set the learning rates to ``factor`` of the full ones; lower for a model that is trained further."""
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor * (FURTHER_RATE if further else 1)


def update(optimizers: Optimizers) -> None:
    """One step of both; AdamW's gradients are scaled down to a norm of 1 where they are larger."""
    _, adam = optimizers
    torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
    for optimizer in optimizers:
        optimizer.step()
