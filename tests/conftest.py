"""What several test files share."""

import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sdv_nvib.model import ModelConfig, TabularNVIB

# Of this process and those that tests start: tables are tiny, and test files run side by side.
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(scope='session')
def build_model():
    """A function that builds a tiny network, the same weights for the same seed."""

    def build(*sizes, ordered=(), seed=0, **config):
        small = {
            'd_model': 16,
            'nhead': 2,
            'num_encoder_layers': 1,
            'num_decoder_layers': 1,
            'dim_feedforward': 32,
        } | config
        positions = [
            (np.arange(size) + 0.5) / size if c in ordered else np.full(size, np.nan)
            for c, size in enumerate(sizes)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TabularNVIB(positions, ModelConfig(**small))

    return build


@pytest.fixture
def network(build_model):
    """A function that builds a network of five columns in float64.

    Every part of its bottleneck is away from its initial zeros.
    """

    def build(**config):
        model = build_model(3, 20, 4, 2, 7, ordered=(1,), **config).double()
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                shift = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
                parameter.add_(0.1 * shift)
        return model

    return build


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond so many bytes."""

    @contextmanager
    def limit(num_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
