"""Muon, the optimiser of matrices between hidden vectors.

PyTorch's own `torch.optim.Muon` multiplies in bfloat16, matrix by matrix, which takes twice as long
as a training step's gradient on processors that do not multiply it natively. Here the same update
is computed in float32, and for all matrices of one shape at once.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ['Muon', 'orthogonalise']

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # root mean square of AdamW's usual updates, over the learning rate


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices, by Newton-Schulz iterations.

    The singular values of all become some 0.7 to 1.2, whatever they were.

    Args:
        matrices: `(k, rows, columns)`.

    Returns:
        The same shape.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's correction, orthogonalised; decoupled weight decay.

    Updates have the root mean square of AdamW's, so that learning rates are of one scale.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate.
        weight_decay: Share of a weight that a step takes away, over the learning rate.

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024),
        https://kellerjordan.github.io/posts/muon/; scale of the updates: Liu et al., Muon is
        scalable for LLM training (2025), https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group['params']:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
                momenta = [self._momentum(parameter) for parameter in parameters]
                momentum = torch.stack(momenta).lerp_(gradients, 1 - MOMENTUM)
                update = orthogonalise(gradients.lerp_(momentum, MOMENTUM))
                rate = group['lr']
                torch._foreach_copy_(momenta, momentum.unbind())
                torch._foreach_mul_(parameters, 1 - rate * group['weight_decay'])
                scale = rate * ADAM_RMS * math.sqrt(max(shape))
                torch._foreach_add_(parameters, update.unbind(), alpha=-scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state['momentum'] = torch.zeros_like(parameter)
        return state['momentum']
