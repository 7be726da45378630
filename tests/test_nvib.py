"""Tests of the mathematics, in float64: reference values, independent formulas, moments."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, Normal, kl_divergence
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from sdv_nvib.nvib import (
    LOG_MASKED,
    DenoisingAttention,
    Mixture,
    MixtureSample,
    NVIBLayer,
    kl_dirichlet,
    kl_gaussian,
    prior_mixture,
    sample_mixture,
    sample_prior,
)

ROWS, QUERIES, COMPONENTS, D_MODEL, NHEAD, P = 2, 3, 5, 12, 3, 6
ROOT = math.sqrt(D_MODEL // NHEAD)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make_mixture(rows=ROWS, components=COMPONENTS, p=P, mask=None, seed=1):
    mu, logvar = normal(rows, components, p, seed=seed), normal(rows, components, p, seed=seed + 1)
    return Mixture(mu, logvar, normal(rows, components, seed=seed + 2).exp(), mask)


def make_sample(seed=1):
    log_pi = normal(ROWS, COMPONENTS, seed=seed + 1)
    return MixtureSample(normal(ROWS, COMPONENTS, P, seed=seed), log_pi)


def identity_attention(p):
    """One head whose u is the query, and whose output is what it reads."""
    attention = DenoisingAttention(p, 1, p).double()
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, attention.out):
            linear.weight.copy_(torch.eye(p))
        attention.query.bias.zero_()
        attention.out.bias.zero_()
    return attention


@pytest.fixture
def attention():
    module = DenoisingAttention(D_MODEL, NHEAD, P).double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=10 + i))
    return module


@pytest.fixture
def query():
    return normal(ROWS, QUERIES, D_MODEL, seed=7)


def per_head(attention, query):
    """For each row, query and head: the row, u and W_v, as the formulas have them."""
    width = attention.head_dim
    for b in range(query.shape[0]):
        for i in range(query.shape[1]):
            projected = attention.query.weight @ query[b, i] + attention.query.bias
            for h in range(attention.nhead):
                head = slice(h * width, (h + 1) * width)
                u = attention.key.weight[head].T @ projected[head]
                yield b, u, attention.value.weight[head]


def by_loops(attention, query, read):
    """Multi-head attention where `read(row, u)` is what one head reads before W_v."""
    heads = [w_v @ read(b, u) for b, u, w_v in per_head(attention, query)]
    heads = torch.stack(heads).reshape(*query.shape[:2], -1)
    return heads @ attention.out.weight.T + attention.out.bias


def reads_the_same(attention, query, kind, one, other):
    if kind == 'sample':
        assert_close(attention(query, one), attention(query, other))
    else:
        assert_close(attention.forward_mixture(query, one), attention.forward_mixture(query, other))


# Reference values of the paper's formulas.


@pytest.mark.parametrize(
    ('alpha', 'delta', 'expected'),
    [([1, 2, 3, 4], 1, 0.144940), ([1, 2, 3, 4], 0, 0.719456), ([1, 1, 1, 1], 1, 0.0)],
)
def test_kl_dirichlet_has_its_reference_values(alpha, delta, expected):
    zeros = torch.zeros(1, 4, 2, dtype=torch.float64)
    mixture = Mixture(zeros, zeros, torch.tensor([alpha], dtype=torch.float64))
    assert kl_dirichlet(mixture, delta=delta).item() == pytest.approx(expected, abs=5e-7)


def test_kl_gaussian_has_its_reference_value():
    mu = torch.tensor([[[0, 0], [1, -1], [2, 0], [0, 0]]], dtype=torch.float64)
    variance = torch.tensor([1, 0.25, 1, 4], dtype=torch.float64)
    alpha = torch.tensor([[1, 2, 3, 4]], dtype=torch.float64)
    mixture = Mixture(mu, variance.log().reshape(1, 4, 1).expand(1, 4, 2), alpha)
    assert kl_gaussian(mixture).item() == pytest.approx(0.786371, abs=5e-7)


# Both divergences against torch.distributions.


@pytest.mark.parametrize('kappa', [1, 3])
@pytest.mark.parametrize('delta', [0.0, 0.3, 1.0])
def test_kl_dirichlet_is_the_divergence_of_symmetric_dirichlets(delta, kappa):
    mixture = make_mixture()
    size = kappa * COMPONENTS
    a_p = 1 + delta * (COMPONENTS - 1)
    expected = [
        kl_divergence(
            Dirichlet(torch.full((size,), a_q.item() / size, dtype=torch.float64)),
            Dirichlet(torch.full((size,), a_p / size, dtype=torch.float64)),
        )
        for a_q in mixture.alpha.sum(1)
    ]
    actual = kl_dirichlet(mixture, delta=delta, kappa=kappa)
    assert_close(actual * COMPONENTS, torch.stack(expected))


@pytest.mark.parametrize('kappa', [1, 3])
def test_kl_gaussian_is_the_weighted_divergence_of_normals(kappa):
    mixture = make_mixture()
    posterior = Normal(mixture.mu, (0.5 * mixture.logvar).exp())
    divergence = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).mean(-1)
    share = mixture.alpha / mixture.alpha.sum(1, keepdim=True)
    assert_close(kl_gaussian(mixture, kappa=kappa), kappa * (share * divergence).sum(1))


# Denoising attention.


def test_attention_to_a_sample_is_the_formula(attention, query):
    sample = make_sample()

    def read(b, u):
        z = sample.z[b]
        scores = [
            u @ z[i] / ROOT + sample.log_pi[b, i] - z[i] @ z[i] / (2 * ROOT)
            for i in range(COMPONENTS)
        ]
        return torch.stack(scores).softmax(0) @ z

    assert_close(attention(query, sample), by_loops(attention, query, read))


def test_attention_to_a_mixture_is_the_formula(attention, query):
    mixture = make_mixture()

    def read(b, u):
        scores, denoised = [], []
        pi = mixture.alpha[b] / mixture.alpha[b].sum()
        for i in range(COMPONENTS):
            mu, variance = mixture.mu[b, i], mixture.logvar[b, i].exp()
            v = variance + ROOT
            score = (u * mu / v).sum() - (u**2 / v).sum() / 2 + pi[i].log()
            scores.append(score - (mu**2 / v).sum() / 2 - v.log().sum() / 2)
            denoised.append(variance / v * u + ROOT / v * mu)
        return torch.stack(scores).softmax(0) @ torch.stack(denoised)

    assert_close(attention.forward_mixture(query, mixture), by_loops(attention, query, read))


def test_weights_of_a_mixture_are_those_it_is_read_with():
    attention, u = identity_attention(4), normal(ROWS, QUERIES, 4)
    mixture = make_mixture(p=4)
    weights = attention.mixture_weights(u, mixture)[:, 0]
    assert_close(weights.sum(-1), torch.ones(ROWS, QUERIES, dtype=torch.float64))
    variance = mixture.logvar.exp()
    v = variance + math.sqrt(4)
    of_u = torch.einsum('bqi,bip->bqp', weights, variance / v)
    of_mu = torch.einsum('bqi,bip->bqp', weights, math.sqrt(4) / v * mixture.mu)
    assert_close(attention.forward_mixture(u, mixture), of_u * u + of_mu)


def test_attention_to_a_mixture_is_the_mean_of_z_given_a_noisy_look_at_it():
    """E[z | u] with u = z + noise of variance sqrt(d), by importance sampling."""
    attention, u = identity_attention(2), normal(1, 1, 2, seed=4)
    mixture = make_mixture(rows=1, components=3, p=2)
    draws = 400_000
    which = torch.multinomial(mixture.weights[0], draws, replacement=True, generator=rng(5))
    z = mixture.mu[0, which] + (0.5 * mixture.logvar[0, which]).exp() * normal(draws, 2, seed=6)
    weights = (-(u[0] - z).square().sum(1) / (2 * math.sqrt(2))).softmax(0)
    expected = (weights @ z).reshape(1, 1, 2)
    assert_close(attention.forward_mixture(u, mixture), expected, atol=0.01, rtol=0)


def test_weights_that_undo_the_norm_make_it_plain_attention(attention, query):
    z = make_sample().z
    sample = MixtureSample(z, z.square().sum(-1) / (2 * ROOT))
    q, k, v = (
        linear(x).unflatten(-1, (NHEAD, -1)).transpose(1, 2)
        for linear, x in ((attention.query, query), (attention.key, z), (attention.value, z))
    )
    plain = attention.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert_close(attention(query, sample), plain)


def test_without_variance_a_mixture_reads_as_its_means(attention, query):
    mixture = make_mixture()
    sharp = Mixture(mixture.mu, torch.full_like(mixture.mu, -60.0), mixture.alpha)
    means = MixtureSample(mixture.mu, mixture.weights.log())
    assert_close(attention.forward_mixture(query, sharp), attention(query, means))


def test_the_prior_component_alone_shrinks_the_query():
    attention, u = identity_attention(4), normal(ROWS, QUERIES, 4)
    read = attention.forward_mixture(u, prior_mixture(ROWS, 4, u))
    assert_close(read, u / (1 + math.sqrt(4)))


def test_a_component_of_infinite_variance_returns_the_query():
    attention, u = identity_attention(4), normal(ROWS, QUERIES, 4)
    mu = normal(ROWS, 1, 4, seed=3)
    flat = Mixture(mu, torch.full_like(mu, 60.0), torch.ones(ROWS, 1, dtype=torch.float64))
    assert_close(attention.forward_mixture(u, flat), u)


def test_the_order_of_components_changes_nothing(attention, query):
    mixture, sample = make_mixture(), make_sample()
    order = torch.randperm(COMPONENTS, generator=rng())
    moved = Mixture(mixture.mu[:, order], mixture.logvar[:, order], mixture.alpha[:, order])
    reads_the_same(attention, query, 'mixture', mixture, moved)
    moved_sample = MixtureSample(sample.z[:, order], sample.log_pi[:, order])
    reads_the_same(attention, query, 'sample', sample, moved_sample)
    assert_close(kl_gaussian(mixture), kl_gaussian(moved))
    assert_close(kl_dirichlet(mixture), kl_dirichlet(moved))


def test_masked_components_change_nothing(attention, query):
    full = make_mixture()
    keep = torch.tensor([True, False, True, True, False])
    mixture = Mixture(full.mu[:, keep], full.logvar[:, keep], full.alpha[:, keep])
    masked = Mixture(full.mu, full.logvar, full.alpha, keep.expand(ROWS, -1))
    reads_the_same(attention, query, 'mixture', mixture, masked)
    for delta, kappa in ((0.0, 1), (1.0, 2)):
        options = {'delta': delta, 'kappa': kappa}
        assert_close(kl_dirichlet(mixture, **options), kl_dirichlet(masked, **options))
        assert_close(kl_gaussian(mixture, kappa=kappa), kl_gaussian(masked, kappa=kappa))

    sample = make_sample()
    kept = MixtureSample(sample.z[:, keep], sample.log_pi[:, keep])
    hidden = MixtureSample(sample.z, sample.log_pi.masked_fill(~keep, LOG_MASKED))
    reads_the_same(attention, query, 'sample', kept, hidden)
    assert_close(attention(query, kept), attention(query, sample, mask=keep[None]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('read', ['sample', 'mixture', 'kl_gaussian', 'kl_dirichlet'])
def test_masked_components_have_zero_gradients_and_others_finite_ones(
    attention, query, read, dtype
):
    keep = torch.tensor([[True, False, True, True, False], [True, True, False, False, False]])
    full = make_mixture()
    leaves = [t.to(dtype).requires_grad_() for t in (full.mu, full.logvar, full.alpha)]
    mixture = Mixture(*leaves, keep)
    attention, query = attention.to(dtype), query.to(dtype)
    losses = {
        'sample': lambda: attention(query, sample_mixture(mixture, 2, rng())),
        'mixture': lambda: attention.forward_mixture(query, mixture),
        'kl_gaussian': lambda: kl_gaussian(mixture),
        'kl_dirichlet': lambda: kl_dirichlet(mixture),
    }
    losses[read]().square().sum().backward()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert grads
    for grad in grads:
        assert grad.isfinite().all()
        assert (grad[~keep] == 0).all()
        assert (grad[keep] != 0).any()


def test_a_causal_query_reads_what_a_mask_allows(attention):
    query, sample = normal(ROWS, COMPONENTS, D_MODEL), make_sample()
    mask = torch.ones(COMPONENTS, COMPONENTS, dtype=torch.bool).tril()
    causal = attention(query, sample, causal=True)
    assert_close(causal, attention(query, sample, mask=mask))
    first = MixtureSample(sample.z[:, :2], sample.log_pi[:, :2])
    assert_close(causal[:, 1:2], attention(query[:, 1:2], first))


# Reparameterisation.

ALPHA = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)


def draw_pi(alpha, rows, kappa=1, seed=0):
    zeros = torch.zeros(rows, len(alpha), 1, dtype=alpha.dtype)
    mixture = Mixture(zeros, zeros, alpha.expand(rows, -1))
    return sample_mixture(mixture, kappa, rng(seed)).log_pi.softmax(-1)


@pytest.mark.parametrize('kappa', [1, 3])
def test_weights_of_components_are_dirichlet_draws(kappa):
    pi = draw_pi(ALPHA, 200_000, kappa).unflatten(-1, (-1, kappa)).sum(-1)
    expected = Dirichlet(ALPHA)
    assert_close(pi.mean(0), expected.mean, atol=2e-3, rtol=0)
    assert_close(pi.var(0), expected.variance, atol=1e-3, rtol=0)
    logs = draw_pi(ALPHA, 200_000, kappa).unflatten(-1, (-1, kappa)).sum(-1).log().mean(0)
    assert_close(logs, torch.digamma(ALPHA) - torch.digamma(ALPHA.sum()), atol=0.03, rtol=0)


def test_weights_within_a_component_are_dirichlet_draws():
    within = draw_pi(ALPHA, 200_000, kappa=2).unflatten(-1, (-1, 2))[:, 2]
    within = within / within.sum(-1, keepdim=True)
    expected = Dirichlet(ALPHA[2].expand(2) / 2)
    assert_close(within.mean(0), expected.mean, atol=2e-3, rtol=0)
    assert_close(within.var(0), expected.variance, atol=1e-3, rtol=0)


@pytest.mark.parametrize('kappa', [1, 3])
def test_gradient_of_mean_weights_is_the_analytic_one(kappa):
    alpha = ALPHA.clone().requires_grad_()
    total = ALPHA.sum()
    mean = draw_pi(alpha, 200_000, kappa).unflatten(-1, (-1, kappa)).sum(-1).mean(0)
    for i in range(len(ALPHA)):
        (grad,) = torch.autograd.grad(mean[i], alpha, retain_graph=True)
        expected = -ALPHA[i] / total**2 * torch.ones_like(ALPHA)
        expected[i] += 1 / total
        assert_close(grad, expected, atol=3e-3, rtol=0)


def test_vectors_have_the_moments_of_their_gaussians():
    mixture = make_mixture(rows=1, components=3, p=2)
    many = mixture.select(torch.zeros(200_000, dtype=torch.int64))
    z = sample_mixture(many, generator=rng()).z
    assert_close(z.mean(0), mixture.mu[0], atol=0.02, rtol=0)
    assert_close(z.var(0), mixture.logvar[0].exp(), atol=0, rtol=0.02)


def test_the_draws_of_one_component_stand_side_by_side():
    mu = torch.arange(3.0).reshape(1, 3, 1)
    mixture = Mixture(mu, torch.full_like(mu, -60.0), torch.ones(1, 3))
    assert_close(sample_mixture(mixture, 2, rng()).z.flatten(), torch.tensor([0.0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_tiny_pseudo_counts_give_finite_logs_and_gradients(dtype):
    alpha = torch.full((1000, 4), 1e-3, dtype=dtype, requires_grad=True)
    zeros = torch.zeros(1000, 4, 1, dtype=dtype)
    log_pi = sample_mixture(Mixture(zeros, zeros, alpha), 2, rng()).log_pi
    log_pi.softmax(-1).square().sum().backward()
    assert log_pi.isfinite().all()
    assert alpha.grad.isfinite().all()


def test_prior_draws_have_the_moments_of_the_prior():
    size, delta = 4, 0.5
    like = torch.zeros((), dtype=torch.float64)
    sample = sample_prior(100_000, size, 2, delta=delta, like=like, generator=rng())
    assert_close(sample.z.mean(0), torch.zeros(size, 2, dtype=torch.float64), atol=0.02, rtol=0)
    assert_close(sample.z.var(0), torch.ones(size, 2, dtype=torch.float64), atol=0.02, rtol=0)
    total = 1 + delta * (size - 1)
    expected = Dirichlet(torch.full((size,), total / size, dtype=torch.float64))
    pi = sample.log_pi.softmax(-1)
    assert_close(pi.mean(0), expected.mean, atol=3e-3, rtol=0)
    assert_close(pi.var(0), expected.variance, atol=2e-3, rtol=0)


@pytest.mark.parametrize('draw', ['mixture', 'prior'])
def test_a_seed_fixes_the_draw_and_the_global_generator_is_left_alone(draw):
    mixture = make_mixture()

    def sample(seed):
        if draw == 'mixture':
            return sample_mixture(mixture, 2, rng(seed))
        return sample_prior(3, 4, P, delta=1.0, like=mixture.mu, generator=rng(seed))

    before = torch.get_rng_state()
    one, same, other = sample(0), sample(0), sample(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.z, same.z)
    assert torch.equal(one.log_pi, same.log_pi)
    assert not torch.equal(one.z, other.z)
    assert not torch.equal(one.log_pi, other.log_pi)


# The posterior layer.


def test_posterior_starts_with_information_passing():
    h = normal(ROWS, 4, D_MODEL)
    mixture = NVIBLayer(D_MODEL, P).double()(h)
    assert (mixture.alpha == 1).all()
    assert (mixture.logvar[:, 1:] == -2).all()
    prior = prior_mixture(ROWS, P, h)
    assert torch.equal(mixture.mu[:, :1], prior.mu)
    assert torch.equal(mixture.logvar[:, :1], prior.logvar)
    assert torch.equal(mixture.alpha[:, :1], prior.alpha)


def test_posterior_is_the_formula_and_hides_what_is_masked():
    layer, h = NVIBLayer(D_MODEL, P).double(), normal(ROWS, 4, D_MODEL)
    with torch.no_grad():
        layer.log_alpha.weight.copy_(0.1 * normal(1, 2 * D_MODEL, seed=2))
        layer.mu_logvar.weight.copy_(0.1 * normal(2 * P, D_MODEL, seed=3))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    mixture = layer(h, mask)
    w1, w2 = layer.log_alpha.weight[0].split(D_MODEL)
    log_alpha = h @ w1 + (h * h) @ w2 + layer.log_alpha.bias
    assert_close(mixture.alpha[:, 1:], log_alpha.exp())
    w_mu, w_logvar = layer.mu_logvar.weight.split(P)
    b_mu, b_logvar = layer.mu_logvar.bias.split(P)
    assert_close(mixture.mu[:, 1:], h @ w_mu.T + b_mu)
    assert_close(mixture.logvar[:, 1:], h @ w_logvar.T + b_logvar)
    assert torch.equal(mixture.mask[:, 1:], mask)
    assert mixture.mask[:, 0].all()
    assert torch.equal(mixture.num_components, torch.tensor([4.0, 3.0], dtype=torch.float64))
    assert_close(mixture.weights.sum(1), torch.ones(ROWS, dtype=torch.float64))
    assert (mixture.weights[:, 1:][~mask] == 0).all()


def test_huge_inputs_give_finite_mixtures_and_losses():
    layer = NVIBLayer(D_MODEL, P)
    with torch.no_grad():
        layer.log_alpha.weight.fill_(1.0)
        layer.mu_logvar.weight[P:].fill_(1.0)
    mixture = layer(torch.tensor([-1e3, 1e3]).reshape(2, 1, 1).expand(2, 4, D_MODEL))
    for value in (mixture.alpha, mixture.logvar, kl_gaussian(mixture), kl_dirichlet(mixture)):
        assert value.isfinite().all()


@pytest.mark.parametrize('read', ['sample', 'mixture'])
def test_gradients_reach_every_parameter(attention, query, read):
    layer = NVIBLayer(D_MODEL, P).double()
    mixture = layer(normal(ROWS, 4, D_MODEL))
    if read == 'sample':
        output = attention(query, sample_mixture(mixture, generator=rng()))
    else:
        output = attention.forward_mixture(query, mixture)
    output.square().sum().backward()
    for module in (layer, attention):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad != 0).any(), name
