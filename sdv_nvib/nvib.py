"""Nonparametric Variational Information Bottleneck (NVIB): the mathematics, in torch alone.

A set of encoder outputs becomes a mixture distribution F: one Gaussian with one Dirichlet
pseudo-count per visible vector, and one prior component. F is sampled with gradients in training,
regularised by two KL terms, and read by denoising attention.

References:
    Henderson and Fehr, "A VAE for Transformers with Nonparametric Variational Information
    Bottleneck", ICLR 2023, https://arxiv.org/abs/2207.13529.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    'DenoisingAttention',
    'Mixture',
    'MixtureSample',
    'NVIBLayer',
    'draw_log_gamma',
    'kl_dirichlet',
    'kl_gaussian',
    'prior_mixture',
    'sample_mixture',
    'sample_prior',
]

PRIOR_ALPHA = 1.0  # alpha_0^p, the pseudo-count of the prior component
LOG_ALPHA_RANGE = (-5.0, 7.0)  # without a clamp alpha grows to 1e26 in 256 dimensions
LOGVAR_RANGE = (-12.0, 6.0)
LOG_MASKED = -1e30  # softmax makes it an exact zero; minus infinity would make gradients 0 * inf


@dataclass(frozen=True)
class Mixture:
    """The distribution F of each row; component 0 is the prior component.

    Attributes:
        mu: Means, `(B, m + 1, p)`.
        logvar: Log-variances, `(B, m + 1, p)`.
        alpha: Pseudo-counts, positive, `(B, m + 1)`.
        mask: True where a component is part of F, `(B, m + 1)`; `None` where all are.
    """

    mu: Tensor
    logvar: Tensor
    alpha: Tensor
    mask: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Expected mixture weights alpha / sum(alpha), zero where masked, `(B, m + 1)`."""
        alpha = self.alpha if self.mask is None else self.alpha * self.mask
        return alpha / alpha.sum(-1, keepdim=True)

    @property
    def num_components(self) -> Tensor:
        """n_c, the number of unmasked components of each row, `(B,)`."""
        if self.mask is None:
            return self.alpha.new_full(self.alpha.shape[:1], self.alpha.shape[1])
        return self.mask.sum(-1).to(self.alpha.dtype)

    def to(self, device: torch.device | str) -> 'Mixture':
        """The same mixtures on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Mixture(self.mu.to(device), self.logvar.to(device), self.alpha.to(device), mask)

    def select(self, index: Tensor) -> 'Mixture':
        """The mixtures of the rows in `index`, `(R,)` integers."""
        mask = None if self.mask is None else self.mask[index]
        return Mixture(self.mu[index], self.logvar[index], self.alpha[index], mask)


@dataclass(frozen=True)
class MixtureSample:
    """A draw from F: weighted vectors.

    Attributes:
        z: Vectors, `(B, K, p)`, the kappa draws of one component side by side.
        log_pi: Log-weights up to one constant per row (attention normalises), `(B, K)`;
            `LOG_MASKED` where masked.
    """

    z: Tensor
    log_pi: Tensor


class NVIBLayer(nn.Module):
    r"""Posterior of the bottleneck: vectors to a mixture, the prior component first.

    $$\mu = W_\mu h + b, \quad \log\sigma^2 = W_s h + b, \quad
      \log\alpha = w_1 \cdot h + w_2 \cdot h^2 + b$$

    At the start alpha is 1 and the log-variance -2 for every vector, so that information passes
    from the first step.

    Shape:
        - Input: `(B, m, d_model)`, layer-normalised, and a mask `(B, m)`, True where visible.
        - Output: `Mixture` of m + 1 components of width `p`.

    References:
        arXiv 2207.13529, section 3.2 and appendix B.

    Examples:
        >>> layer = NVIBLayer(8, 4)
        >>> layer(torch.zeros(2, 3, 8)).mu.shape
        torch.Size([2, 4, 4])
    """

    def __init__(self, d_model: int, p: int) -> None:
        super().__init__()
        self.p = p
        self.mu_logvar = nn.Linear(d_model, 2 * p)
        self.log_alpha = nn.Linear(2 * d_model, 1)
        with torch.no_grad():
            self.mu_logvar.weight[p:] = 0.0
            self.mu_logvar.bias[p:] = -2.0
        nn.init.zeros_(self.log_alpha.weight)
        nn.init.zeros_(self.log_alpha.bias)

    def components(self, h: Tensor) -> Mixture:
        """One component per vector, without the prior component."""
        log_alpha = self.log_alpha(torch.cat([h, h.square()], -1)).squeeze(-1)
        mu, logvar = self.mu_logvar(h).split(self.p, -1)
        return Mixture(mu, logvar.clamp(*LOGVAR_RANGE), log_alpha.clamp(*LOG_ALPHA_RANGE).exp())

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Mixture:
        """The prior component and one component per vector."""
        posterior, prior = self.components(h), prior_mixture(h.shape[0], self.p, h)
        return Mixture(
            mu=torch.cat([prior.mu, posterior.mu], 1),
            logvar=torch.cat([prior.logvar, posterior.logvar], 1),
            alpha=torch.cat([prior.alpha, posterior.alpha], 1),
            mask=None if mask is None else functional.pad(mask, (1, 0), value=True),
        )


def prior_mixture(num_rows: int, p: int, like: Tensor) -> Mixture:
    """F with nothing visible: the prior component N(0, I) alone, pseudo-count alpha_0^p.

    Args:
        num_rows: B.
        p: Width of the vectors.
        like: A tensor of the wanted dtype and device.

    Returns:
        A mixture of one component.
    """
    zeros = like.new_zeros(num_rows, 1, p)
    return Mixture(zeros, zeros, like.new_full((num_rows, 1), PRIOR_ALPHA))


def draw_log_gamma(alpha: Tensor, generator: torch.Generator | None) -> Tensor:
    """Log of Gamma(alpha, 1) draws, with implicit gradients and no underflow at small alpha.

    Gamma(a) = Gamma(a + 1) U^(1/a), so the log stays finite where the draw itself would be zero.
    """
    draw = torch._standard_gamma(alpha + 1.0, generator=generator)
    uniform = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype, device=alpha.device)
    return draw.log() + uniform.clamp_min(torch.finfo(alpha.dtype).tiny).log() / alpha


def sample_mixture(
    mixture: Mixture, kappa: int = 1, generator: torch.Generator | None = None
) -> MixtureSample:
    """Draw weighted vectors from F, with gradients to mu, logvar and alpha.

    Each component gives `kappa` vectors z = mu + sigma eps. Their weights are normalised Gamma
    draws of shape alpha / kappa, which is pi_ik = rho_i s_ik with rho ~ Dir(alpha) and
    s_i ~ Dir(alpha_i / kappa, ...). They are left unnormalised: softmax normalises, over whatever
    subset is read, and a sub-vector of a Dirichlet draw, renormalised, is Dirichlet again.

    Args:
        mixture: F of B rows with m + 1 components.
        kappa: Vectors per component, at least 1.
        generator: Source of randomness.

    Returns:
        `(m + 1) * kappa` weighted vectors a row.

    References:
        arXiv 2207.13529, section 3.3.
    """
    mu, std, alpha = mixture.mu, (0.5 * mixture.logvar).exp(), mixture.alpha
    if kappa > 1:
        mu, std = mu.repeat_interleave(kappa, 1), std.repeat_interleave(kappa, 1)
        alpha = (alpha / kappa).repeat_interleave(kappa, 1)
    noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    # Gamma draws and their implicit gradients need float32 also under bf16 autocast.
    log_pi = draw_log_gamma(alpha.float() if alpha.dtype is torch.bfloat16 else alpha, generator)
    if mixture.mask is not None:
        mask = mixture.mask.repeat_interleave(kappa, 1) if kappa > 1 else mixture.mask
        log_pi = log_pi.masked_fill(~mask, LOG_MASKED)
    return MixtureSample(mu + std * noise, log_pi)


def sample_prior(
    num_rows: int,
    num_vectors: int,
    p: int,
    *,
    delta: float,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> MixtureSample:
    """Draw `num_vectors` weighted vectors from the prior: z ~ N(0, I), pi ~ Dir(a_p / m, ...).

    Args:
        num_rows: B.
        num_vectors: m, as many as a row's mixture has components.
        p: Width of the vectors.
        delta: How much the prior's total pseudo-count a_p = alpha_0^p + delta (m - 1) grows with m.
        like: A tensor of the wanted dtype and device.
        generator: Source of randomness.

    Returns:
        Weighted vectors, `(B, m, p)` and `(B, m)`.
    """
    total = PRIOR_ALPHA + delta * (num_vectors - 1)
    shape = (num_rows, num_vectors)
    alpha = like.new_full(shape, total / num_vectors)
    z = torch.randn((*shape, p), generator=generator, dtype=like.dtype, device=like.device)
    return MixtureSample(z, draw_log_gamma(alpha, generator))


def kl_dirichlet(mixture: Mixture, *, delta: float = 1.0, kappa: int = 1) -> Tensor:
    r"""L_D, the Dirichlet part of the bottleneck's loss, per row and per component.

    With $a_q = \sum_i \alpha_i$, $a_p = \alpha_0^p + \delta(n_c - 1)$, $K = \kappa n_c$:

    $$L_D = \frac{1}{n_c}[\ln\Gamma(a_q) - \ln\Gamma(a_p) + (a_q - a_p)(\psi(a_q/K) - \psi(a_q))
      + K(\ln\Gamma(a_p/K) - \ln\Gamma(a_q/K))]$$

    Args:
        mixture: F of B rows, the prior component included.
        delta: Growth of the conditional prior's pseudo-count with n_c.
        kappa: Vectors drawn per component.

    Returns:
        `(B,)`, in nats over n_c. Times n_c it is the unscaled divergence.

    References:
        arXiv 2207.13529, equation 9.
    """
    alpha = mixture.alpha if mixture.mask is None else mixture.alpha * mixture.mask
    a_q, n_c = alpha.sum(-1), mixture.num_components
    a_p, k = PRIOR_ALPHA + delta * (n_c - 1), kappa * n_c
    total = torch.lgamma(a_q) - torch.lgamma(a_p)
    total = total + (a_q - a_p) * (torch.digamma(a_q / k) - torch.digamma(a_q))
    total = total + k * (torch.lgamma(a_p / k) - torch.lgamma(a_q / k))
    return total / n_c


def kl_gaussian(mixture: Mixture, *, kappa: int = 1) -> Tensor:
    r"""L_G, the Gaussian part of the bottleneck's loss, per row, component and dimension.

    $$L_G = \frac{\kappa}{2}\sum_i \frac{\alpha_i}{a_q} \frac{1}{p} \sum_h
      [\sigma_{ih}^2 + \mu_{ih}^2 - 1 - \ln\sigma_{ih}^2]$$

    Args:
        mixture: F of B rows, the prior component (whose term is zero) included.
        kappa: Vectors drawn per component.

    Returns:
        `(B,)`, in nats over n_c p. Times n_c p it is the unscaled divergence.

    References:
        arXiv 2207.13529, equation 10.
    """
    divergence = mixture.logvar.exp() + mixture.mu.square() - 1.0 - mixture.logvar
    return 0.5 * kappa * (mixture.weights * divergence.mean(-1)).sum(-1)


class DenoisingAttention(nn.Module):
    r"""Multi-head attention that reads a mixture distribution.

    With $u = W_k^\top q$ for each head of size d, on sampled vectors

    $$s_i = u \cdot z_i/\sqrt d + \ln\pi_i - \|z_i\|^2/(2\sqrt d), \qquad
      W_v \sum_i \mathrm{softmax}(s)_i z_i$$

    and on the distribution itself (`forward_mixture`), with $v_i = \sigma_i^2 + \sqrt d$,

    $$s_i = \sum_h \frac{u_h\mu_{ih}}{v_{ih}} - \frac12\sum_h\frac{u_h^2}{v_{ih}} + \ln\pi_i
      - \frac12\sum_h\frac{\mu_{ih}^2}{v_{ih}} - \frac12\sum_h\ln v_{ih}, \qquad
      W_v \sum_i \mathrm{softmax}(s)_i
      \Big[\frac{\sigma_i^2}{v_i}\odot u + \frac{\sqrt d}{v_i}\odot\mu_i\Big]$$

    The first is one `scaled_dot_product_attention`. The per-key bias is carried as one more
    dimension of the keys, against a constant 1 in the query, and not as an additive mask: a mask
    that needs a gradient would lose torch's fused kernel. The head outputs are then mixed by one
    linear map, as in any multi-head attention.

    Args:
        d_model: Width of queries and outputs.
        nhead: Heads; divides `d_model`.
        p: Width of the vectors read.
        shared: An attention whose W_k and W_v this one reads with: what is read is then projected
            once for both.

    Shape:
        - Query: `(B, L, d_model)`; sample `(B, K, p)`.
        - `mask`: True where a query may read a key, broadcastable to `(B, H, L, K)`.
        - Output: `(B, L, d_model)`.

    References:
        arXiv 2207.13529, section 3.4, equations 6 to 8.

    Examples:
        >>> attention = DenoisingAttention(8, 2, p=4)
        >>> sample = MixtureSample(torch.zeros(3, 5, 4), torch.zeros(3, 5))
        >>> attention(torch.zeros(3, 6, 8), sample).shape
        torch.Size([3, 6, 8])
    """

    def __init__(
        self, d_model: int, nhead: int, p: int, shared: 'DenoisingAttention | None' = None
    ) -> None:
        super().__init__()
        self.nhead, self.p, self.head_dim = nhead, p, d_model // nhead
        self.query = nn.Linear(d_model, d_model)
        self.key: nn.Linear = nn.Linear(p, d_model, bias=False) if shared is None else shared.key
        self.value: nn.Linear = (
            nn.Linear(p, d_model, bias=False) if shared is None else shared.value
        )
        self.out = nn.Linear(d_model, d_model)

    def project_query(self, query: Tensor) -> Tensor:
        """Queries with their constant bias dimension, `(B, H, L, d + 1)`."""
        weight = functional.pad(
            self.query.weight.unflatten(0, (self.nhead, self.head_dim)), (0, 0, 0, 1)
        )
        bias = functional.pad(
            self.query.bias.unflatten(0, (self.nhead, self.head_dim)), (0, 1), value=1.0
        )
        q = functional.linear(query, weight.flatten(0, 1), bias.flatten())
        return q.unflatten(-1, (self.nhead, self.head_dim + 1)).transpose(-3, -2)

    def key_bias(self, sample: MixtureSample) -> Tensor:
        """What is added to each vector's scores, the same for every query and head, `(B, K)`."""
        return sample.log_pi - sample.z.square().sum(-1) / (2 * math.sqrt(self.head_dim))

    def project_sample(self, sample: MixtureSample) -> tuple[Tensor, Tensor]:
        """Keys and values of a sample, `(B, H, K, d + 1)` each."""
        bias = math.sqrt(self.head_dim) * self.key_bias(sample)
        source = torch.cat([sample.z, bias.unsqueeze(-1).to(sample.z.dtype)], -1)
        # One product gives keys with the bias as last dimension, and values padded to their width.
        shape = (2, self.nhead, self.head_dim)
        weight = torch.stack([self.key.weight, self.value.weight]).view(*shape, self.p)
        weight = functional.pad(weight, (0, 1, 0, 1))
        carry = torch.zeros_like(weight)
        carry[0, :, -1, -1] = 1.0
        kv = functional.linear(source, (weight + carry).flatten(0, 2))
        k, v = kv.unflatten(-1, (2, self.nhead, self.head_dim + 1)).unbind(-3)
        return k.transpose(-3, -2), v.transpose(-3, -2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Read projected keys and values, `(B, L, d_model)`."""
        heads = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=1 / math.sqrt(self.head_dim)
        )
        return self.out(heads[..., : self.head_dim].transpose(-3, -2).flatten(-2))

    def forward(
        self,
        query: Tensor,
        sample: MixtureSample,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Training attention, and wherever z is a sample.

        Args:
            query: `(B, L, d_model)`.
            sample: K weighted vectors a row.
            mask: True where a query may read a vector.
            causal: Query j reads the first j + 1 vectors only.
        """
        k, v = self.project_sample(sample)
        return self.attend(self.project_query(query), k, v, mask=mask, causal=causal)

    def forward_mixture(
        self, query: Tensor, mixture: Mixture, *, mask: Tensor | None = None
    ) -> Tensor:
        """Evaluation attention: E[z | u] under F and noise of variance sqrt(d).

        Args:
            query: `(B, L, d_model)`.
            mixture: F with m + 1 components.
            mask: True where a query may read a component, broadcastable to `(B, H, L, m + 1)`.
        """
        return self.attend_mixture(query, *self.project_mixture(mixture), mask=mask)

    def project_mixture(self, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
        """What evaluation attention reads of F: the same for all layers with as many heads.

        Returns:
            For each component what u and its square are multiplied by for the score,
            `(B, m + 1, 2p)`, what is added to it, `(B, m + 1)`, and what u is multiplied by and
            what is added in what is read, `(B, m + 1, 2p)`.
        """
        root, variance = math.sqrt(self.head_dim), mixture.logvar.exp()
        v = variance + root
        scaled = mixture.mu / v
        # The log of alpha, not of pi: softmax normalises, and pi's own log has no gradient at the
        # zeros of masked components. So ln v / sqrt(d) is enough, whose sum leaves bfloat16 digits.
        log_v = torch.log1p(variance / root)
        bias = mixture.alpha.log() - 0.5 * (mixture.mu * scaled + log_v).sum(-1)
        if mixture.mask is not None:
            bias = bias.masked_fill(~mixture.mask, LOG_MASKED)
        return torch.cat([scaled, -0.5 / v], -1), bias, torch.cat([variance / v, root * scaled], -1)

    def attend_mixture(
        self,
        query: Tensor,
        keys: Tensor,
        bias: Tensor,
        values: Tensor,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Read a projected mixture, `(B, L, d_model)`."""
        u, weights = self._weigh(query, keys, bias, mask)
        # All heads read the same values: their queries are one long list.
        read = torch.bmm(weights.flatten(1, 2), values).unflatten(1, u.shape[1:3])
        of_u, of_mean = read.split(self.p, -1)
        value = self.value.weight.view(self.nhead, self.head_dim, self.p)
        heads = torch.einsum('bhlp,hdp->blhd', of_u * u + of_mean, value)
        return self.out(heads.flatten(2))

    def mixture_weights(self, query: Tensor, mixture: Mixture) -> Tensor:
        """How much of each component `forward_mixture` reads, softmax(s), `(B, H, L, m + 1)`."""
        keys, bias, _ = self.project_mixture(mixture)
        return self._weigh(query, keys, bias, None)[1]

    def _weigh(
        self, query: Tensor, keys: Tensor, bias: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """u, `(B, H, L, p)`, and softmax(s), `(B, H, L, m + 1)`."""
        q = self.query(query).unflatten(-1, (self.nhead, self.head_dim))
        key = self.key.weight.view(self.nhead, self.head_dim, self.p)
        # Not by matmul, which would copy the key weights for every row.
        u = torch.einsum('blhd,hdp->bhlp', q, key)
        queries = torch.cat([u, u.square()], -1).flatten(1, 2)
        scores = torch.baddbmm(bias.unsqueeze(1), queries, keys.transpose(1, 2))
        scores = scores.unflatten(1, u.shape[1:3])
        if mask is not None:
            scores = scores.masked_fill(~mask, LOG_MASKED)
        return u, scores.softmax(-1)
