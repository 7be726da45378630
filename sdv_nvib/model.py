"""The network: a transformer VAE over the columns of a row, with an NVIB as its only passage.

Third in the flow: token ids in, losses or token ids out. One set of modules serves both ways to
generate; only the attention mask and what the decoder is asked differ:

- any-order: columns are put in a random order, encoder self-attention is causal in it, and the
  query of a column reads the prior component and the components of the columns before it.
- single-pass: every column sees every column, every query reads all of F.

The decoder has no self-attention over values and gets no value embeddings: what it knows of a row
went through F.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdv_nvib.nvib import (
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

__all__ = ['NETWORK_VERSION', 'ModelConfig', 'ModelOutput', 'TabularNVIB']

NETWORK_VERSION = 5  # raised when weights of before would be read wrongly
NUM_FREQUENCIES = 16
LEAST_AMPLITUDE = 1 / 80  # of the highest frequency, where the lowest has 1
FREE_SCALE = 0.3  # of a token's own vector, beside the part that it shares with its neighbours
ACTIVE_NATS = 0.1  # a component counts as active when more than this passes through it


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network and settings of the bottleneck.

    Attributes:
        d_model: Width of the network and of the latent vectors.
        nhead: Attention heads; divides `d_model`.
        num_encoder_layers: Encoder depth.
        num_decoder_layers: Decoder depth.
        dim_feedforward: Width of the hidden layer of each feed-forward block.
        dropout: Dropout probability in the residual branches.
        kappa: Latent vectors sampled per component.
        delta: Growth of the conditional prior's pseudo-count with the number of components.
        generation: 'any-order' or 'single-pass'.
    """

    d_model: int = 64
    nhead: int = 4
    num_encoder_layers: int = 1
    num_decoder_layers: int = 3
    dim_feedforward: int = 64
    dropout: float = 0.0
    kappa: int = 1
    delta: float = 1.0
    generation: str = 'any-order'


@dataclass(frozen=True)
class ModelOutput:
    """What one pass over a batch gives.

    Attributes:
        nll: Negative log-likelihood of each value given F, in nats, `(B, n)`, in column order.
        kl_gaussian: L_G of each row, `(B,)`.
        kl_dirichlet: L_D of each row, `(B,)`.
        mixture: F of each row; any-order leaves out the last column in the order, which no query
            reads.
    """

    nll: Tensor
    kl_gaussian: Tensor
    kl_dirichlet: Tensor
    mixture: Mixture

    @property
    def nats(self) -> Tensor:
        """Unscaled KL, the information that passes through the bottleneck, in nats, `(B,)`."""
        _, num_components, p = self.mixture.mu.shape
        return num_components * (p * self.kl_gaussian + self.kl_dirichlet)

    @property
    def active_components(self) -> Tensor:
        """Components whose mean Gaussian share of the nats exceeds `ACTIVE_NATS`, `(B,)`."""
        mixture = self.mixture
        divergence = mixture.logvar.exp() + mixture.mu.square() - 1.0 - mixture.logvar
        share = mixture.weights * mixture.weights.shape[1] * 0.5 * divergence.sum(-1)
        return (share > ACTIVE_NATS).sum(-1)


class TokenTable(nn.Module):
    r"""One vector per token, smooth in the quantile where a column's tokens are ordered.

    $$e_t = s_t f_t + A_c\,\phi(u_t), \qquad
      \phi(u) = [1, 2u - 1, a_k \sin 2\pi k u, a_k \cos 2\pi k u]_k$$

    with a free row f for each token, one linear map A per ordered column and 16 frequencies k,
    log-spaced from 1/2 to K/6 for K ordered tokens: neighbouring bins share what they learn. The
    amplitudes a fall with the frequency, as in a smoothing spline: slow changes are learned first,
    fast ones where many rows ask for them. For the same reason a free row beside a smooth part
    starts at zero and counts less, s = 0.3; without one s = 1 and the smooth part is zero.

    Shape:
        - Output: `(V, dim)` for V tokens of all columns together.
    """

    def __init__(self, positions: Sequence[np.ndarray], dim: int, std: float) -> None:
        super().__init__()
        ordered = [(i, p) for i, p in enumerate(positions) if not np.isnan(p).all()]
        self.sizes = [len(p) for p in positions]
        self.ordered_columns = [i for i, _ in ordered]
        total = sum(self.sizes)
        longest = max((len(p) for _, p in ordered), default=0)
        features = np.zeros((len(ordered), longest, 2 + 2 * NUM_FREQUENCIES), np.float32)
        # Where each token's smooth part stands in the flattened batch; the last row is zero.
        index = np.full(total, len(ordered) * longest)
        offsets = np.cumsum([0, *self.sizes])
        for k, (column, position) in enumerate(ordered):
            present = ~np.isnan(position)
            features[k, : len(position)][present] = _fourier_features(position[present])
            tokens = np.flatnonzero(present)
            index[offsets[column] + tokens] = k * longest + tokens
        self.register_buffer('features', torch.from_numpy(features))
        self.register_buffer('index', torch.from_numpy(index))
        smooth = torch.randn(len(ordered), features.shape[-1], dim) * std / math.sqrt(18)
        self.smooth = nn.Parameter(smooth)
        is_free = torch.from_numpy(index == len(ordered) * longest).float().unsqueeze(-1)
        self.free = nn.Parameter(torch.randn(total, dim) * std * is_free)
        self.register_buffer('scale', is_free + FREE_SCALE * (1 - is_free))

    features: Tensor
    index: Tensor
    scale: Tensor

    def forward(self) -> Tensor:
        """The whole table, built anew from its parts."""
        if not len(self.features):
            return self.free
        smooth = torch.bmm(self.features, self.smooth).flatten(0, 1)
        return self.scale * self.free + functional.pad(smooth, (0, 0, 0, 1))[self.index]


def _departure(known: Tensor, sharpening: float, temperature: Tensor | float) -> Tensor:
    """What departures of logits from their biases are multiplied by, given the known columns."""
    return (known.pow(sharpening) / temperature).clamp_max(1)


def _fourier_features(u: np.ndarray) -> np.ndarray:
    """Features of quantile positions, `(T,)` to `(T, 2 + 2 * NUM_FREQUENCIES)`."""
    top = max(len(u) / 6, 0.5)
    k = np.geomspace(0.5, top, NUM_FREQUENCIES)
    angle = 2 * np.pi * u[:, None] * k
    amplitude = np.geomspace(1, LEAST_AMPLITUDE, NUM_FREQUENCIES)
    amplitude /= np.sqrt(np.mean(amplitude**2))
    waves = [amplitude * np.sin(angle), amplitude * np.cos(angle)]
    return np.concatenate([np.ones_like(u)[:, None], 2 * u[:, None] - 1, *waves], 1)


class FeedForward(nn.Sequential):
    """Position-wise block: linear, GELU, linear; `(..., d_model)` to the same."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            nn.Linear(config.d_model, config.dim_feedforward),
            nn.GELU(),
            nn.Linear(config.dim_feedforward, config.d_model),
        )


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with self-attention, causal or full.

    Shape:
        - Input and output: `(B, m, d_model)`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.nhead = config.nhead
        self.dropout = config.dropout
        self.norm1 = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.feedforward = FeedForward(config)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Residual branches after the heads, side by side, have been read."""
        x = x + self._drop(self.out(heads))
        return x + self._drop(self.feedforward(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """Self-attention over the visible values, then the feed-forward block."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.nhead, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, H, 3, m, head_dim) to three
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.finish(x, heads.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Pre-norm layer that reads F by denoising attention; queries do not see each other.

    Args:
        config: Sizes.
        first: The decoder's first layer, with whose keys and values this one reads; `None` for
            that layer itself.

    Shape:
        - Input and output: `(B, L, d_model)`.
    """

    def __init__(self, config: ModelConfig, first: 'DecoderLayer | None' = None) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention: DenoisingAttention = DenoisingAttention(
            config.d_model, config.nhead, config.d_model, first.attention if first else None
        )
        self.norm2 = nn.LayerNorm(config.d_model)
        self.feedforward = FeedForward(config)

    def project_query(self, x: Tensor) -> Tensor:
        """Normalised and projected queries, `(B, H, L, d + 1)`."""
        return self.attention.project_query(self.norm1(x))

    def finish(self, x: Tensor, read: Tensor) -> Tensor:
        """Residual branches after F has been read."""
        x = x + functional.dropout(read, self.dropout, self.training)
        ff = self.feedforward(self.norm2(x))
        return x + functional.dropout(ff, self.dropout, self.training)


class TabularNVIB(nn.Module):
    """Transformer VAE over table rows with a Nonparametric Variational Information Bottleneck.

    Args:
        positions: For each column the quantile positions of its tokens, NaN where a token has no
            order (`TableSchema.positions`); their lengths are the vocabulary sizes.
        config: Sizes and settings.

    Attributes:
        reads_mixture: Whether any-order mode reads F itself outside training, in place of draws.
        temperatures: T of each column, at least 1, `(n,)`.
        sharpening: Power s. Where F itself is read and m columns are known, what a column's logits
            depart by from their biases is multiplied by $m^s / T$, but by no more than 1.

    Shape:
        - Input: token ids `(B, n)`, an order of the columns `(B, n)`.
        - Output: `ModelOutput`.

    References:
        arXiv 2207.13529. Departures: the column queries replace a token sequence, so the decoder
        needs no causal self-attention; any-order generation reads prefixes of F.

    Examples:
        >>> model = TabularNVIB([np.full(2, np.nan), np.full(3, np.nan)], ModelConfig())
        >>> order = torch.tensor([[1, 0]])
        >>> model(torch.tensor([[1, 2]]), order, torch.Generator()).nll.shape
        torch.Size([1, 2])
    """

    def __init__(self, positions: Sequence[np.ndarray], config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = list(positions)
        self.sizes = [len(p) for p in positions]
        self.num_columns = len(self.sizes)
        d_model = config.d_model
        self.token_embedding = TokenTable(positions, d_model, std=0.5)
        self.column_query = nn.Parameter(torch.randn(self.num_columns, d_model) * 0.5)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(d_model)
        self.nvib = NVIBLayer(d_model, d_model)
        first = DecoderLayer(config)
        others = (DecoderLayer(config, first) for _ in range(config.num_decoder_layers - 1))
        self.decoder = nn.ModuleList([first, *others])
        self.decoder_norm = nn.LayerNorm(d_model)
        self.token_output = TokenTable(positions, d_model, std=0.02)
        self.output_bias = nn.Parameter(torch.zeros(sum(self.sizes)))
        offsets = torch.tensor([0, *self.sizes]).cumsum(0)[:-1]
        self.register_buffer('offsets', offsets)
        self.register_buffer('temperatures', torch.ones(self.num_columns), persistent=False)
        self.reads_mixture = False
        self.sharpening = 0.0

    offsets: Tensor
    temperatures: Tensor

    @property
    def encoder_layers(self) -> list[EncoderLayer]:
        """The encoder's layers, typed."""
        return cast(list[EncoderLayer], list(self.encoder))

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The decoder's layers, typed."""
        return cast(list[DecoderLayer], list(self.decoder))

    @property
    def is_any_order(self) -> bool:
        """Whether columns are read and generated one after the other."""
        return self.config.generation == 'any-order'

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.column_query.device

    @torch.no_grad()
    def start_from_marginals(self, tokens: Tensor) -> None:
        """Set the output biases to the log-frequencies of the tokens.

        Training then starts from independent columns and need not find rare categories step by
        step.

        Args:
            tokens: Token ids of the training rows, `(N, n)`.
        """
        flat = (tokens.to(self.device) + self.offsets).flatten()
        counts = torch.bincount(flat, minlength=len(self.output_bias)).to(self.output_bias.dtype)
        self.output_bias.copy_(((counts + 0.5) / len(tokens)).log())

    def encode(self, tokens: Tensor, order: Tensor | None = None) -> Mixture:
        """F of rows, q(z|x).

        Args:
            tokens: Token ids, `(B, m)`: values of the columns `order`, at those places.
            order: Column of each place, `(B, m)`; `None` for all columns in table order.

        Returns:
            A mixture of m + 1 components, in the order given. In any-order mode component i
            knows the places up to i alone.
        """
        offsets = self.offsets if order is None else self.offsets[order]
        if tokens.shape[1] == 0:
            return prior_mixture(tokens.shape[0], self.config.d_model, self.column_query)
        x = functional.embedding(tokens + offsets, self.token_embedding())
        for layer in self.encoder_layers:
            x = layer(x, causal=self.is_any_order)
        return self.nvib(self.encoder_norm(x))

    def decode(self, sample: MixtureSample, order: Tensor) -> Tensor:
        """p(x|z): hidden state of each column's query, from a sample of F.

        Args:
            sample: kappa vectors per component, in the order of the columns.
            order: Column asked at each place, `(B, L)`.

        Returns:
            `(B, L, d_model)`. In any-order mode place j reads the first j + 1 components.
        """
        x = functional.embedding(order, self.column_query)
        causal, mask = self.is_any_order, None
        if causal and self.config.kappa > 1:
            places = torch.arange(x.shape[1], device=x.device)
            components = torch.arange(sample.z.shape[1], device=x.device) // self.config.kappa
            causal, mask = False, components[None, :] <= places[:, None]
        k, v = self.decoder_layers[0].attention.project_sample(sample)  # those of all layers
        for i, layer in enumerate(self.decoder_layers):
            q = self._first_query(order) if i == 0 else layer.project_query(x)
            x = layer.finish(x, layer.attention.attend(q, k, v, mask=mask, causal=causal))
        return self.decoder_norm(x)

    def _first_query(self, order: Tensor) -> Tensor:
        """The first layer's queries, `(B, H, L, d + 1)`.

        They depend on the column alone: they are projected once per column, not once per row.
        """
        q = self.decoder_layers[0].project_query(self.column_query)  # (H, n, d + 1)
        rows = functional.embedding(order, q.transpose(0, 1).flatten(1))
        return rows.unflatten(-1, (self.config.nhead, -1)).transpose(1, 2)

    def decode_mixture(self, mixture: Mixture, order: Tensor, *, causal: bool = False) -> Tensor:
        """As `decode` with evaluation attention: F itself in place of a sample; deterministic.

        Args:
            mixture: F, its components in the order of the columns.
            order: Column asked at each place, `(B, L)`.
            causal: Place j reads the first j + 1 components; otherwise every query reads all that
                are handed in.

        Returns:
            `(B, L, d_model)`, scaled by `sharpening` and `temperatures`: m columns are known where
            m components are read beside the prior's.
        """
        mask = None
        if causal:
            mask = order.new_ones(order.shape[1], mixture.mu.shape[1]).tril().bool()
        projected = self.decoder_layers[0].attention.project_mixture(mixture)  # that of all layers
        return self.decode_projected(projected, order, mask)

    def decode_projected(
        self, projected: tuple[Tensor, Tensor, Tensor], order: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """As `decode_mixture`, given what `DenoisingAttention.project_mixture` makes of F."""
        x = functional.embedding(order, self.column_query)
        for layer in self.decoder_layers:
            read = layer.attention.attend_mixture(layer.norm1(x), *projected, mask=mask)
            x = layer.finish(x, read)
        if mask is None:  # every query reads all components, of which one is the prior's
            known = x.new_tensor(projected[0].shape[1] - 1)
        else:
            known = torch.arange(x.shape[1], device=x.device)
        scale = _departure(known, self.sharpening, self.temperatures[order])
        return self.decoder_norm(x) * scale.unsqueeze(-1)

    def output_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight `(V_c, d_model)` and bias `(V_c,)` of each column's output layer."""
        # One split, not a slice per column: a slice's gradient is as large as the whole table.
        weights = self.token_output().split(self.sizes)
        return list(zip(weights, self.output_bias.split(self.sizes), strict=True))

    def forward(
        self, tokens: Tensor, order: Tensor, generator: torch.Generator | None = None
    ) -> ModelOutput:
        """Losses of a batch, with F sampled in training, and outside it as `reads_mixture` says.

        Args:
            tokens: Token ids in column order, `(B, n)`.
            order: A permutation of the columns for each row, `(B, n)`.
            generator: Source of the latent noise.
        """
        mixture, hidden = self._read(tokens, order, generator)
        return ModelOutput(
            nll=self.token_nll(hidden, tokens),
            kl_gaussian=kl_gaussian(mixture, kappa=self.config.kappa),
            kl_dirichlet=kl_dirichlet(mixture, delta=self.config.delta, kappa=self.config.kappa),
            mixture=mixture,
        )

    def _read(
        self, tokens: Tensor, order: Tensor, generator: torch.Generator | None
    ) -> tuple[Mixture, Tensor]:
        """F of rows and, read from it, hidden states in column order, `(B, n, d_model)`."""
        placed = tokens.gather(1, order)
        # No query reads the component of the last column in the order: it is not computed.
        seen = self.num_columns - 1 if self.is_any_order else self.num_columns
        mixture = self.encode(placed[:, :seen], order[:, :seen])
        if self.reads_mixture and not self.training:
            hidden = self.decode_mixture(mixture, order, causal=True)
        else:
            hidden = self.decode(sample_mixture(mixture, self.config.kappa, generator), order)
        place = order.argsort(1).unsqueeze(-1).expand_as(hidden)
        return mixture, hidden.gather(1, place)

    def token_nll(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Negative log-likelihood of each value, from hidden states in column order, `(B, n)`."""
        columns = zip(hidden.unbind(1), self.output_layers(), tokens.unbind(1), strict=True)
        return torch.stack(
            [
                functional.cross_entropy(
                    functional.linear(h, *layer).float(), token, reduction='none'
                )
                for h, layer, token in columns
            ],
            1,
        )

    def nll_at_temperatures(
        self,
        tokens: Tensor,
        order: Tensor,
        generator: torch.Generator | None,
        sharpenings: Sequence[float],
        temperatures: Sequence[float],
    ) -> Tensor:
        """As `forward`'s nll, for each of some powers and of some temperatures of all columns.

        Args:
            tokens: Token ids in column order, `(B, n)`.
            order: A permutation of the columns for each row, `(B, n)`.
            generator: Source of the latent noise, where draws are read.
            sharpenings: Values of `sharpening`, S of them; the network's own is to be 0.
            temperatures: Values of `temperatures`, T of them; the network's own are to be 1.

        Returns:
            `(S, T, B, n)`.
        """
        _, hidden = self._read(tokens, order, generator)
        known = order.argsort(1)  # as many as there are places before the column's
        scales = torch.stack([_departure(known, s, t) for s in sharpenings for t in temperatures])
        columns = []
        layers = zip(hidden.unbind(1), self.output_layers(), strict=True)
        for c, (h, (weight, bias)) in enumerate(layers):
            departures = functional.linear(h, weight)
            tempered = ((bias + k * departures).float() for k in scales[:, :, c].unsqueeze(-1))
            nll = [
                functional.cross_entropy(logits, tokens[:, c], reduction='none')
                for logits in tempered
            ]
            columns.append(torch.stack(nll))
        return torch.stack(columns, -1).unflatten(0, (len(sharpenings), len(temperatures)))

    @torch.inference_mode()
    def reconstruct(self, tokens: Tensor, *, cut: bool = False) -> Tensor:
        """The most likely value of every column given F, by evaluation attention.

        Single-pass decodes each column from all of F, any-order from the components of all other
        columns.

        Args:
            tokens: Token ids in column order, `(B, n)`.
            cut: Leave only the prior component in F: what the decoder knows without the
                bottleneck.

        Returns:
            Token ids, `(B, n)`.
        """
        layers, columns = self.output_layers(), torch.arange(self.num_columns, device=self.device)
        result = torch.empty_like(tokens)
        for c, (_, mixture) in enumerate(self._readable_mixtures(tokens)):
            if cut:
                mixture = prior_mixture(len(tokens), self.config.d_model, self.column_query)
            hidden = self.decode_mixture(mixture, columns[c].expand(len(tokens), 1))
            result[:, c] = functional.linear(hidden[:, 0], *layers[c]).argmax(-1)
        return result

    def _readable_mixtures(self, tokens: Tensor) -> Iterator[tuple[Tensor, Mixture]]:
        """For each column the components that its query may read, and the columns they are of.

        Single-pass reads all of F; any-order, whose decoder never learned to read a column's own
        component, F of all other columns.
        """
        columns = torch.arange(self.num_columns, device=self.device)
        everything = None if self.is_any_order else self.encode(tokens)
        for c in range(self.num_columns):
            if everything is not None:
                yield columns, everything
            else:
                others = columns[columns != c]
                yield others, self.encode(tokens[:, others], others.expand(len(tokens), -1))

    @torch.inference_mode()
    def attention_weights(self, tokens: Tensor) -> Tensor:
        """How much of each component every column's query reads in `reconstruct`.

        Args:
            tokens: Token ids in column order, `(B, n)`.

        Returns:
            Mean of the heads and decoder layers, `(B, n, n + 1)`: the prior component, then those
            of the columns; zero where a query may not read a component.
        """
        result = tokens.new_zeros((*tokens.shape, self.num_columns + 1), dtype=torch.float32)
        for c, (columns, mixture) in enumerate(self._readable_mixtures(tokens)):
            components = functional.pad(columns + 1, (1, 0))
            x = self.column_query[c].expand(len(tokens), 1, -1)
            for layer in self.decoder_layers:
                query = layer.norm1(x)
                weights = layer.attention.mixture_weights(query, mixture)
                result[:, c, components] += weights.mean(1).squeeze(1) / len(self.decoder_layers)
                x = layer.finish(x, layer.attention.forward_mixture(query, mixture))
        return result

    def sample_latent(self, num_rows: int, generator: torch.Generator) -> MixtureSample:
        """F from the prior, with as many vectors as a full row has in training."""
        return sample_prior(
            num_rows,
            (self.num_columns + 1) * self.config.kappa,
            self.config.d_model,
            delta=self.config.delta,
            like=self.column_query,
            generator=generator,
        )
