"""Tests of Muon: its updates are PyTorch's, in float32."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sdv_nvib.muon import Muon, orthogonalise


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('shape', [(3, 16, 16), (2, 48, 16), (1, 16, 48), (1, 1, 5)])
def test_singular_values_become_alike_and_directions_stay(shape):
    given = matrices(*shape)
    u, values, vh = torch.linalg.svd(given, full_matrices=False)
    found = u.mT @ orthogonalise(given) @ vh.mT  # diagonal in the directions of what was given
    large = values > 0.05 * values[:, :1]
    diagonal = torch.diagonal(found, dim1=-2, dim2=-1)
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all()
    assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


def test_matrices_without_a_gradient_and_of_zeros_stay():
    zero, without = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(matrices(4, 4))
    zero.grad, before = torch.zeros(4, 4), without.detach().clone()
    Muon([zero, without], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(zero, torch.zeros(4, 4))
    assert torch.equal(without, before)


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='PyTorch has Muon from 2.9 on')
def test_steps_are_those_of_pytorch_whose_are_rounded_to_bfloat16():
    shapes = [(16, 16), (32, 16), (16, 16), (16, 40)]
    ours, theirs = (
        [nn.Parameter(matrices(*shape, seed=i)) for i, shape in enumerate(shapes)] for _ in range(2)
    )
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.3),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.3, adjust_lr_fn='match_rms_adamw'),
    )
    for step in range(4):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = matrices(*one.shape, seed=10 * step + place)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        start = matrices(*shapes[i], seed=i)
        moved = (one - start).norm()
        assert (one - other).norm() < 0.03 * moved
