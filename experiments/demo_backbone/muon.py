"""The optimizer of the image tower's matrices: Muon (Jordan et al., https://kellerjordan.github.io/posts/muon/).

Momentum whose singular values are all brought near 1, so that no direction of a matrix lags behind. torch.optim.Muon
orthogonalises in bfloat16, which CPUs without such instructions emulate, and matrix by matrix; this one takes float32
and all matrices of a shape at once.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz: coefficients that lift small singular values fast, at the price of ending near 1, not at it.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 4
# Updates get the root mean square that AdamW's have, so that both can share a learning rate.
ADAM_RMS = 0.2


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.5 and 1.5; (N, R, C) -> (N, R, C)."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.transpose(1, 2)).transpose(1, 2)
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)  # (N, R, R)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon for matrices (R, C).

    Args:
        parameters: matrices only.
        lr: learning rate, on the scale of AdamW's.
        momentum: Nesterov's.
        weight_decay: decoupled.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.0, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                updates = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                size = ADAM_RMS * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * size)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.mul_(momentum).add_(parameter.grad)
        return parameter.grad + momentum * buffer
