"""Draws the figures of `docs/pages/explanation.md` with the package's own mathematics.

    python docs/figures.py [folder]

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; what a colour says is
also said by a place, a shape or a word.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from sdv_nvib.generation import Steering
from sdv_nvib.nvib import (
    DenoisingAttention,
    Mixture,
    kl_dirichlet,
    kl_gaussian,
    sample_mixture,
)

FOLDER = Path(__file__).parent / 'pages'
NAMES = ('prior', 'age', 'job', 'income')
GREY, BLUE, ORANGE, GREEN, RED = '#666666', '#0072B2', '#E69F00', '#009E73', '#D55E00'
COLOURS = (GREY, BLUE, ORANGE, GREEN)
MARKERS = ('o', 's', '^', 'D')


def rng(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def example_mixture() -> Mixture:
    """F of a row of three values in two dimensions, the prior component first."""
    mu = torch.tensor([[[0.0, 0.0], [2.6, 1.6], [-2.4, 1.5], [0.9, -2.3]]])
    std = torch.tensor([[[1.0, 1.0], [0.55, 0.35], [0.4, 0.6], [0.85, 0.5]]])
    return Mixture(mu, 2 * std.log(), torch.tensor([[1.0, 4.0, 2.0, 0.5]]))


def plane_attention() -> DenoisingAttention:
    """One head in the plane, whose u is the query and whose output is what it reads."""
    attention = DenoisingAttention(2, 1, 2)
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, attention.out):
            linear.weight.copy_(torch.eye(2))
        attention.query.bias.zero_()
        attention.out.bias.zero_()
    return attention


def draw_components(axis: Axes, mixture: Mixture, *, names: bool = True) -> None:
    """Ellipses of one and two standard deviations."""
    for i, name in enumerate(NAMES):
        (x, y), (a, b) = mixture.mu[0, i].tolist(), (0.5 * mixture.logvar[0, i]).exp().tolist()
        for k, alpha in ((1, 0.35), (2, 0.15)):
            ellipse = Ellipse((x, y), 2 * k * a, 2 * k * b, color=COLOURS[i], alpha=alpha, lw=0)
            axis.add_patch(ellipse)
        if names:
            text = f'{name}\nα = {mixture.alpha[0, i]:g}'
            axis.text(x, y, text, ha='center', va='center', fontsize=9)
    axis.set(xlim=(-4, 4.4), ylim=(-4, 3.6), xticks=[], yticks=[], aspect='equal')


def mixture_figure() -> Figure:
    """F, one draw of vectors, and draws of weights."""
    figure = Figure(figsize=(11, 3.9), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    mixture = example_mixture()
    draw_components(left, mixture)
    left.set_title('F: a Gaussian and a pseudo-count α\nfor each value, and the prior component')
    draw_components(middle, mixture, names=False)
    for seed in range(3):
        sample = sample_mixture(mixture, generator=rng(seed))
        weights = sample.log_pi.softmax(-1)
        for i in range(len(NAMES)):
            x, y = sample.z[0, i].tolist()
            size = 20 + 500 * float(weights[0, i])
            filled = COLOURS[i] if seed == 0 else 'none'
            middle.scatter(
                x, y, size, marker=MARKERS[i], facecolors=filled, edgecolors=COLOURS[i], lw=1.2
            )
    middle.set_title(
        'Draws of F: z = μ + σ ε, as large as its\nweight π (one draw filled, two open)'
    )
    draws = sample_mixture(
        Mixture(*(part.expand(6, *part.shape[1:]) for part in (mixture.mu, mixture.logvar)),
                mixture.alpha.expand(6, -1)),
        generator=rng(5),
    ).log_pi.softmax(-1)  # fmt: skip
    weights = torch.cat([mixture.weights, draws]).numpy()
    below = np.zeros(len(weights))
    places = np.array([-0.6, *range(1, 7)])
    for i, name in enumerate(NAMES):
        right.bar(places, weights[:, i], 0.8, below, color=COLOURS[i], label=name)
        below += weights[:, i]
    right.set_xticks(places, ['mean', *(f'{k}' for k in range(1, 7))])
    right.set(xlabel='draw', ylabel='weight π', xlim=(-1.2, 6.6))
    right.legend(loc='upper center', bbox_to_anchor=(0.45, -0.16), ncols=4, fontsize=8)
    right.set_title('π ~ Dirichlet(α): normalised Gamma\ndraws, Gamma(αᵢ) for component i')
    return figure


def attention_figure() -> Figure:
    """What a query reads of F: in the plane, and along a line."""
    figure = Figure(figsize=(11, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    mixture, attention = example_mixture(), plane_attention()
    draw_components(left, mixture, names=False)
    for i, name in enumerate(NAMES):
        left.text(*mixture.mu[0, i].tolist(), name, ha='center', va='center', fontsize=9)
    axis = torch.linspace(-3.6, 3.6, 7)
    queries = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1).reshape(1, -1, 2)
    with torch.no_grad():
        answers = attention.forward_mixture(queries, mixture)
    (x, y), (to_x, to_y) = queries[0].T.numpy(), answers[0].T.numpy()
    left.quiver(
        x, y, to_x - x, to_y - y, angles='xy', scale_units='xy', scale=1, width=0.003, color='black'
    )
    left.set_title(
        'Every query is moved to its best guess:\nthe vector of F that it is a noisy copy of'
    )
    line = torch.linspace(-5, 5, 201)[:, None]
    one = DenoisingAttention(1, 1, 1)
    with torch.no_grad():
        for linear in (one.query, one.key, one.value, one.out):
            linear.weight.fill_(1.0)
        one.query.bias.zero_()
        one.out.bias.zero_()
    mu = torch.tensor([[[0.0], [-2.5], [2.5]]])
    styles = (('-', 0.1, BLUE), ('--', 1.0, ORANGE), (':', 3.0, GREEN))
    for style, std, colour in styles:
        stds = torch.tensor([[[1.0], [std], [std]]])
        components = Mixture(mu, 2 * stds.log(), torch.tensor([[0.2, 1.0, 1.0]]))
        with torch.no_grad():
            read = one.forward_mixture(line[None], components)[0]
        right.plot(line[:, 0], read[:, 0], style, color=colour, lw=2.2, label=f'σ = {std:g}')
    right.plot(line[:, 0], line[:, 0], color=GREY, lw=0.8, label='the query itself')
    right.set(xlabel='query u', ylabel='answer E[z | u]', ylim=(-5, 5))
    right.legend(fontsize=9)
    right.set_title('Two components at −2.5 and 2.5: sure ones (small σ)\nare chosen between, '
                    'vague ones return the query')  # fmt: skip
    return figure


def draw_mask(axis: Axes, rows: list[str], columns: list[str], mask: np.ndarray) -> None:
    """A grid; dark with a dot where a row may look at a column."""
    for i, j in np.ndindex(mask.shape):
        colour = BLUE if mask[i, j] else 'white'
        axis.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor=GREY))
        if mask[i, j]:
            axis.text(j + 0.5, i + 0.5, '●', color='white', ha='center', va='center')
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0), aspect='equal')
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)


def masks_figure() -> Figure:
    """Who may look at whom in the order job, income, age, and in single-pass generation."""
    figure = Figure(figsize=(11, 2.6), layout='constrained')
    axes = figure.subplots(1, 4, width_ratios=[3, 4, 3, 4])
    order = ['job', 'income', 'age']
    causal, full = np.tri(3, dtype=bool), np.ones((3, 3), dtype=bool)
    components, asked = ['prior', *order], [f'{name}?' for name in order]
    draw_mask(axes[0], order, order, causal)
    draw_mask(axes[1], asked, components, np.eye(3, 4, dtype=bool) | np.tri(3, 4, -1, dtype=bool))
    draw_mask(axes[2], order, order, full)
    draw_mask(axes[3], asked, components, np.ones((3, 4), dtype=bool))
    for axis, title in zip(
        axes,
        (
            'Any-order: encoder,\nvalue looks at value',
            'Any-order: decoder,\nquestion reads component',
            'Single-pass: encoder,\nvalue looks at value',
            'Single-pass: decoder,\nquestion reads component',
        ),
        strict=True,
    ):
        axis.set_title(title, fontsize=11, pad=22)
    return figure


def knobs_figure() -> Figure:
    """The weight of the bottleneck, delta, kappa and temperature, each by itself."""
    figure = Figure(figsize=(11, 7), layout='constrained')
    (weight, delta), (kappa, temperature) = figure.subplots(2, 2)

    # One standard normal value, a linear encoder and decoder, decoder noise of variance 0.01: the
    # best encoder of this toy has a closed form.
    lambdas = np.geomspace(0.01, 1000, 200)
    nats = np.maximum(0.0, 0.5 * np.log(1 / (lambdas * 0.01)))
    weight.semilogx(lambdas, nats, color=BLUE, lw=2.2)
    weight.axvspan(100, 1000, color=GREY, alpha=0.25, lw=0)
    weight.text(316, 2.2, 'collapsed:\nnothing\npasses', ha='center')
    weight.set(xlabel='λ, the price of a nat', ylabel='nats that pass', xlim=(0.01, 1000))
    weight.set_title('λ: the dearer a nat, the fewer pass,\nand from some price on none')

    totals = np.geomspace(0.5, 60, 200)
    size = 10
    for style, value, colour in (('-', 1.0, BLUE), ('--', 0.5, ORANGE), (':', 0.0, GREEN)):
        alpha = torch.from_numpy(totals / size)[:, None].expand(-1, size)
        zeros = torch.zeros(len(totals), size, 1, dtype=torch.float64)
        loss = size * kl_dirichlet(Mixture(zeros, zeros, alpha), delta=value)
        delta.semilogx(totals, loss, style, color=colour, lw=2.2, label=f'δ = {value:g}')
        best = 1 + value * (size - 1)
        delta.plot(best, 0, 'o', color=colour)
    delta.set(xlabel='sum of the pseudo-counts of 10 components', ylabel='Dirichlet nats',
              ylim=(-0.4, 12))  # fmt: skip
    delta.legend()
    delta.set_title('δ: how large the pseudo-counts may grow\nfor nothing, with more components')

    attention, query = plane_attention(), torch.tensor([[[1.0, 0.5]]])
    mixture = example_mixture()
    many = Mixture(*(part.expand(2000, *part.shape[1:])
                     for part in (mixture.mu, mixture.logvar, mixture.alpha)))  # fmt: skip
    draws = (1, 2, 4, 8, 16)
    spread = []
    for count in draws:
        sample = sample_mixture(many, count, rng(count))
        with torch.no_grad():
            read = attention(query.expand(2000, -1, -1), sample)
        spread.append(float(read[:, 0].std(0).norm()))
    kappa.plot(draws, spread, 'o-', color=BLUE, lw=2.2)
    kappa.set(xlabel='κ, vectors per component', ylabel='spread of one answer', ylim=(0, 0.9))
    kappa.set_xticks(draws)
    kappa.set_title('κ: more draws of each component,\na steadier answer and more work')

    logits = torch.tensor([[2.0, 1.3, 0.7, 0.0, -1.0]])
    width = 0.2
    settings = ((0.5, 1.0, BLUE, ''), (1.0, 1.0, ORANGE, ''), (2.0, 1.0, GREEN, ''),
                (1.0, 0.8, RED, '//'))  # fmt: skip
    for k, (heat, top_p, colour, hatch) in enumerate(settings):
        shares = Steering((heat,), (top_p,), (-1,)).apply(logits.clone(), 0).softmax(-1)[0]
        label = f'temperature {heat:g}' if top_p == 1 else f'top_p {top_p:g}'
        places = np.arange(5) + (k - 1.5) * width
        temperature.bar(places, shares, width, color=colour, hatch=hatch, label=label,
                        edgecolor='white')  # fmt: skip
    temperature.set_xticks(range(5), list('abcde'))
    temperature.set(xlabel='category', ylabel='probability')
    temperature.legend()
    temperature.set_title('temperature and top_p of `sample`:\ntypical values, or rare ones too')
    return figure


def gaussian_figure() -> Figure:
    """What a Gaussian component costs."""
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    z = np.linspace(-4, 4, 300)

    def density(mu: float, std: float) -> np.ndarray:
        return np.exp(-((z - mu) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))

    left.fill_between(z, density(0, 1), color=GREY, alpha=0.35, label='prior', lw=0)
    shown = ((0.0, 1.0, ':', GREEN), (1.0, 0.6, '--', ORANGE), (2.0, 0.2, '-', BLUE))
    stds = np.geomspace(0.05, 2, 100)
    for mu, std, style, colour in shown:
        cost = gaussian_nats(mu, np.array([std]))[0]
        label = f'μ = {mu:g}, σ = {std:g}: {cost:.1f} nats'
        left.plot(z, density(mu, std), style, color=colour, lw=2.2, label=label)
        right.semilogx(
            stds, gaussian_nats(mu, stds), style, color=colour, lw=2.2, label=f'μ = {mu:g}'
        )
        right.plot(std, cost, 'o', color=colour)
    left.set(xlabel='z, one dimension', ylabel='density')
    left.legend(fontsize=8)
    left.set_title('A component that says more\nlies farther from the prior, or is sharper')
    right.set(xlabel='σ', ylabel='nats', ylim=(0, 5))
    right.legend()
    right.set_title('Its price in nats,\n½ (σ² + μ² − 1 − ln σ²) in each dimension')
    return figure


def gaussian_nats(mu: float, std: np.ndarray) -> np.ndarray:
    """Divergence from the prior of a component of one dimension, by the package's own L_G."""
    size = len(std)
    logvar = torch.from_numpy(2 * np.log(std)).reshape(size, 1, 1)
    alone = Mixture(torch.full_like(logvar, mu), logvar, torch.ones(size, 1, dtype=torch.float64))
    return kl_gaussian(alone).numpy()


FIGURES = {
    'nvib_mixture': mixture_figure,
    'nvib_gaussian': gaussian_figure,
    'nvib_attention': attention_figure,
    'nvib_masks': masks_figure,
    'nvib_knobs': knobs_figure,
}


def main(folder: Path) -> None:
    """Draw every figure into a folder."""
    for name, draw in FIGURES.items():
        draw().savefig(folder / f'{name}.png', dpi=110)


if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
