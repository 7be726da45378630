"""One HTML page about one synthetic table, for readers who do not program.

Duty: what `quality` measured, in words and pictures, in a single file that needs no network. It
knows no synthesizer: what a fit recorded comes in as plain tables.

The pictures are drawn from counts of bins, not from rows: SDMetrics' plots of columns and pairs
hold the rows themselves, and a report is passed on to people who may not see these. SDMetrics'
overviews hold scores alone and are shown as SDMetrics draws them, in colours that colour-blind
readers can tell apart.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from sdv_nvib._version import __version__
from sdv_nvib.errors import InvalidParameterError
from sdv_nvib.persistence import whole_file
from sdv_nvib.quality import (
    DISTANCE_AUC,
    LIKELIHOOD_AUC,
    MISSING,
    REAL_COLOUR,
    SYNTHETIC_COLOUR,
    BinnedTables,
    QualityEvaluation,
    Table,
    bin_tables,
    evaluate_quality,
)

if TYPE_CHECKING:
    from sdv.metadata import Metadata

__all__ = ['write_report']

PAIR_BINS = 10
MAX_PAIR_PLOTS = 2_000  # worst first; keeps the file of a table with many columns small
WORST_PAIRS = 20
PACKAGES = ('sdv', 'sdmetrics', 'rdt', 'torch', 'pandas', 'numpy', 'scikit-learn', 'plotly')
COLOUR_SCALE = 'Cividis'
QUALITY_MARGIN = 0.03
C2ST_MARGIN = 0.3
DCR_MARGIN = 0.03
COPIES_MARGIN = 0.005
AUC_MARGIN = 0.02
RMSE_RATIO = 1.1
PRIVACY_WORDS = ('DCR', 'copies', 'membership', 'bottleneck', 'disclosure', 'differential')


@dataclass(frozen=True)
class _Verdict:
    """One line of the verdict: 'Good', 'Check' or 'Not measured', a question and its answer."""

    status: str
    question: str
    answer: str


@dataclass(frozen=True)
class _Tables:
    """The rows that a page is about, and what its only table is called."""

    name: str
    real: pd.DataFrame
    synthetic: pd.DataFrame
    test: pd.DataFrame | None
    metadata: Metadata


@dataclass(frozen=True)
class _Scored:
    """The scores of the synthetic rows, and of real rows in their place.

    Attributes:
        synthetic: Scores of the synthetic rows.
        second: Scores of other real rows.
        second_is: What these other real rows are, in words.
    """

    synthetic: QualityEvaluation
    second: QualityEvaluation
    second_is: str


# ------------------------------------------------------------------------- scores and words


def _with_second(
    evaluation: QualityEvaluation,
    tables: _Tables,
    sensitive: list[str] | None,
    known: list[str] | None,
    seed: int,
) -> _Scored:
    """Score real rows in place of the synthetic ones."""
    base, second = tables.real, tables.test
    if second is None:
        order = np.random.default_rng(seed).permutation(len(base))
        half = max(1, len(base) // 2)
        base, second = base.iloc[order[:half]], base.iloc[order[-half:]]
        words = 'one half of the real rows against the other half (no test rows were given)'
    else:
        words = f'the {len(second):,} real test rows against the real rows'
    num_made = len(tables.synthetic)
    if len(second) < num_made:
        words += (
            f'. They are fewer than the {num_made:,} synthetic rows: chance lowers their scores'
        )
    of_second = evaluate_quality(
        base, second, tables.metadata, sensitive=sensitive, known=known, seed=seed
    )
    return _Scored(evaluation, of_second, words)


def _likeness(scored: _Scored) -> _Verdict:
    """Say how alike both tables are."""
    scores, second = scored.synthetic.to_dict(), scored.second.to_dict()
    quality, best = scores['SDMetrics quality'], second['SDMetrics quality']
    valid = scores['SDMetrics diagnostic']
    deceived, honest = scores['C2ST'], second['C2ST']
    told = not math.isnan(deceived + honest) and deceived < honest - C2ST_MARGIN
    good = quality >= best - QUALITY_MARGIN and valid > 1 - 1e-9 and not told
    answer = f'Quality {quality:.1%}; real rows in their place score {best:.1%}.'
    if not math.isnan(deceived):
        answer += (
            f' A classifier is deceived to {deceived:.0%} (100%: it cannot tell the rows from real '
            'ones).'
        )
    if valid <= 1 - 1e-9:
        # Rounded down: 100.0% would say that all pass.
        passed = math.floor(1000 * valid) / 1000
        answer += f' Only {passed:.1%} of the checks of valid values and structure pass.'
    return _Verdict('Good' if good else 'Check', 'Is it like the real table?', answer)


def _privacy(scored: _Scored, num_rows: int) -> _Verdict:
    """Say whether rows look copied."""
    scores = scored.synthetic.to_dict()
    question = 'Does it give real rows away?'
    copies, share = scores['exact copies'], scores['DCR share']
    answer = f'{copies:.2%} of the synthetic rows equal a real row in every modelled column'
    if math.isnan(share):
        answer += (
            '. Whether they lie closer to the training rows than they should needs real rows that '
            'were not used for training.'
        )
        return _Verdict('Not measured', question, answer)
    unseen = scores['exact copies among test rows']
    limit = 0.5 + max(DCR_MARGIN, 1 / math.sqrt(num_rows))
    of_rows, of_model = (scores.get(name, math.nan) for name in (DISTANCE_AUC, LIKELIHOOD_AUC))
    good = share <= limit and copies <= unseen + COPIES_MARGIN and not of_rows > limit
    answer += (
        f' (unseen real rows: {unseen:.2%}). {share:.0%} of them lie nearer to a training row than '
        f'to an unseen one; 50% is ideal, up to {limit:.0%} can be chance.'
    )
    if of_rows > limit:
        answer += f' They let an attacker guess who was in the training rows (AUC {of_rows:.2f}).'
    if of_model > limit:
        answer += (
            f' The model itself gives away more (AUC {of_model:.2f}; 0.5 is nothing): pass on the '
            'rows, not the model.'
        )
    return _Verdict('Good' if good else 'Check', question, answer)


def _usefulness(scored: _Scored, target: str | None, columns: dict[str, Any]) -> _Verdict:
    """Say whether what is learned from the synthetic rows holds on real ones."""
    question = 'Can one work with it?'
    scores = scored.synthetic.to_dict()
    made, real = scores['utility'], scores['utility of real rows']
    if target is None or math.isnan(made) or math.isnan(real):
        reason = 'No column to predict was named.' if target is None else f'{target!r}: no score.'
        return _Verdict('Not measured', question, reason)
    is_number = columns[target]['sdtype'] == 'numerical'
    name, digits = ('error (RMSE)', '.4g') if is_number else ('AUC', '.3f')
    good = made <= RMSE_RATIO * real if is_number else made >= real - AUC_MARGIN
    answer = (
        f'A model that predicts {target!r} has {name} {made:{digits}} after training on synthetic '
        f'rows, {real:{digits}} after training on real ones.'
    )
    return _Verdict('Good' if good else 'Check', question, answer)


def _group(measure: str) -> str:
    """Return the heading that a measure stands under."""
    if measure.startswith('utility'):
        return 'Utility'
    if any(word in measure for word in PRIVACY_WORDS):
        return 'Privacy'
    return 'Diagnostic' if 'diagnostic' in measure else 'Quality'


def _format(value: float, measure: str) -> str:
    """Return a score as text."""
    if math.isnan(value):
        return 'not measured'
    if measure.endswith('%'):
        return f'{value:.2f}%'
    return f'{value:.3f}' if abs(value) < 100 else f'{value:,.0f}'


def _measures(scored: _Scored) -> dict[str, list[dict[str, str]]]:
    """Return the measures by heading: name, score, score of other real rows, meaning."""
    second = scored.second.to_dict()
    scores = scored.synthetic.to_dict()
    # What the hold-out scores has a row of its own in the summary; here it has a column.
    second['utility'] = scores['utility of real rows']
    hidden = {'trend error floor %', 'utility of real rows', 'exact copies among test rows'}
    groups: dict[str, list[dict[str, str]]] = {}
    for measure, value, ideal, meaning in scored.synthetic.summary.itertuples(index=False):
        if measure not in hidden:
            # Measures that need test rows have an ideal: what unseen rows score by definition.
            best = second.get(measure, math.nan)
            best = ideal if math.isnan(best) and not math.isnan(value) else best
            row = {
                'measure': measure.removesuffix(' %'),
                'value': _format(value, measure),
                'second': '–' if math.isnan(best) else _format(best, measure),
                'meaning': meaning.replace('`', ''),
            }
            groups.setdefault(_group(measure), []).append(row)
    properties = scored.synthetic.diagnostic_report.get_properties().dropna()
    for name, score in properties.itertuples(index=False):
        row = {'measure': name, 'value': _format(score, name), 'second': _format(1.0, name)}
        meaning = 'Share of checks passed; 1 is necessary.'
        groups.setdefault('Diagnostic', []).append(row | {'meaning': meaning})
    return groups


# ------------------------------------------------------------------------- pictures


def _shares(codes: np.ndarray, size: int) -> list[float]:
    """Return the share of the rows in each bin."""
    return [round(x, 5) for x in (np.bincount(codes, minlength=size) / len(codes)).tolist()]


def _columns(binned: BinnedTables, errors: pd.Series) -> list[dict[str, Any]]:
    """Return what the page draws and says of each column."""
    columns = []
    for j, (name, labels) in enumerate(binned.labels.items()):
        shares = [_shares(table[:, j], len(labels)) for table in (binned.real, binned.synthetic)]
        has_missing = bool(labels) and labels[-1] == MISSING
        columns.append(
            {
                'name': str(name),
                'ordered': binned.ordered[j],
                'labels': labels,
                'real': shares[0],
                'synthetic': shares[1],
                'error': round(float(errors[name]), 4),
                'missing': [share[-1] if has_missing else 0.0 for share in shares],
            }
        )
    return columns


def _pairs(binned: BinnedTables, scored: _Scored) -> dict[str, Any]:
    """Return the errors of all pairs, and the counts that the plots of the worst are made of."""
    errors, second = (e.pair_errors.to_numpy() for e in (scored.synthetic, scored.second))
    left, right = np.tril_indices(len(errors), -1)
    order = np.argsort(-errors[left, right], kind='stable')
    sizes = [len(labels) for labels in binned.labels.values()]
    plots = {}
    for k in order[:MAX_PAIR_PLOTS]:
        i, j = int(left[k]), int(right[k])
        plots[f'{i}-{j}'] = [
            np.round(
                np.bincount(table[:, i] * sizes[j] + table[:, j], minlength=sizes[i] * sizes[j])
                * (10_000 / len(table))
            )
            .astype(int)
            .tolist()
            for table in (binned.real, binned.synthetic)
        ]

    def rounded(matrix: np.ndarray) -> list[list[float | None]]:
        return [[None if math.isnan(x) else round(x, 4) for x in row] for row in matrix.tolist()]

    return {
        'labels': list(binned.labels.values()),
        'errors': rounded(errors),
        'second': rounded(second),
        'worst': [[int(left[k]), int(right[k])] for k in order[:WORST_PAIRS]],
        'plots': plots,
    }


def _sdmetrics_figures(evaluation: QualityEvaluation, table: str, pairs: bool) -> dict[str, Any]:
    """Return SDMetrics' own overviews, in colours that are safe for colour-blind eyes."""
    figures = {}
    for name in ('Column Shapes', *(['Column Pair Trends'] if pairs else [])):
        figure = evaluation.quality_report.get_visualization(name, table_name=table)
        figure.update_traces(marker_color=REAL_COLOUR, selector={'name': 'KSComplement'})
        figure.update_traces(marker_color=SYNTHETIC_COLOUR, selector={'name': 'TVComplement'})
        for axis in figure.select_coloraxes():
            axis.colorscale = COLOUR_SCALE
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        figure.update_layout(
            template=None, height=900 if pairs and name != 'Column Shapes' else 420
        )
        figures[name] = json.loads(figure.to_json())
    return figures


def _rows(rows: Table, argument: str, table: str) -> pd.DataFrame:
    """Return the frame of the only table."""
    if isinstance(rows, dict) and table not in rows:
        raise InvalidParameterError(
            f'{argument} must hold the table {table!r} of the metadata, received {list(rows)}.'
        )
    return rows[table] if isinstance(rows, dict) else rows


def _metadata_text(metadata: Metadata) -> str:
    """Return the metadata as JSON, without the ranges: these are values of rows."""
    described = metadata.to_dict()
    for table in described['tables'].values():
        for column in table['columns'].values():
            for key in [key for key in column if key.startswith('range_')]:
                del column[key]
    return json.dumps(described, indent=2, default=str)


def _versions() -> dict[str, str]:
    """Return what made the page, with versions."""
    versions = {'sdv-nvib': __version__, 'Python': platform.python_version()}
    return versions | {package: importlib.metadata.version(package) for package in PACKAGES}


# ------------------------------------------------------------------------- the page


def write_report(
    path: str | Path,
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    test: Table | None = None,
    target: str | None = None,
    sensitive: list[str] | None = None,
    known: list[str] | None = None,
    seed: int = 0,
    history: pd.DataFrame | None = None,
    parameters: dict[str, Any] | None = None,
    evaluation: QualityEvaluation | None = None,
    verbose: bool = False,
) -> QualityEvaluation:
    """Write one self-contained HTML page about a synthetic table.

    Args:
        path: File to write, replaced if it is there. It appears when it is whole.
        real: The rows the synthesizer was trained on, a frame or SDV 2's `{table: frame}`.
        synthetic: Synthetic rows, best as many as real ones.
        metadata: An `sdv.metadata.Metadata` with one table.
        test: Real rows *not* used for training. They say what real rows score in place of the
            synthetic ones, and privacy can be judged with them alone. Without them the two halves
            of the real table are compared, and the page says so.
        target: Column to predict, for utility.
        sensitive: Columns that an attacker may want to know, for disclosure protection.
        known: Columns that the attacker knows; `None` for all that are not sensitive.
        seed: Seed of every random choice of the scores.
        history: Losses by epoch, as `NVIBSynthesizer.get_loss_values` returns them.
        parameters: How the synthetic rows were made: name to value.
        evaluation: Scores of the same rows, where they have been taken already.
        verbose: Show progress lines.

    Returns:
        The scores on the page.

    Raises:
        InvalidParameterError: If tables, metadata and target do not fit.
    """
    name = next(iter(metadata.to_dict()['tables']), '')
    real_rows, made_rows = _rows(real, 'real', name), _rows(synthetic, 'synthetic', name)
    tables = _Tables(
        name, real_rows, made_rows, None if test is None else _rows(test, 'test', name), metadata
    )
    if evaluation is None:
        evaluation = evaluate_quality(
            real_rows,
            made_rows,
            metadata,
            test=tables.test,
            target=target,
            sensitive=sensitive,
            known=known,
            seed=seed,
            verbose=verbose,
        )
    with tqdm(total=2, desc='Writing the report', disable=not verbose, unit='step') as progress:
        scored = _with_second(evaluation, tables, sensitive, known, seed)
        progress.update()
        page = _page(scored, tables, target, seed, history, parameters or {})
        with whole_file(Path(path)) as part:
            part.write_text(page, encoding='utf-8')
        progress.update()
    return evaluation


def _page(
    scored: _Scored,
    tables: _Tables,
    target: str | None,
    seed: int,
    history: pd.DataFrame | None,
    parameters: dict[str, Any],
) -> str:
    """Return the page as text."""
    both = tables.real, tables.synthetic, tables.metadata
    described = tables.metadata.to_dict()['tables'][tables.name]['columns']
    sizes = [len(rows) for rows in (tables.real, tables.synthetic, tables.test) if rows is not None]
    columns = _columns(bin_tables(*both), scored.synthetic.shape_errors)
    return _render(
        title=tables.name,
        verdicts=[
            _likeness(scored),
            _privacy(scored, min(sizes)),
            _usefulness(scored, target, described),
        ],
        measures=_measures(scored),
        second_is=scored.second_is,
        columns=columns,
        pairs=_pairs(bin_tables(*both, bins=PAIR_BINS), scored),
        history=history,
        made={
            'Real rows': f'{len(tables.real):,}',
            'Synthetic rows': f'{len(tables.synthetic):,}',
            'Test rows': '–' if tables.test is None else f'{len(tables.test):,}',
            'Epochs trained': '–' if history is None else len(history),
            'Seed of the scores': seed,
            'Written': datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
        },
        parameters=parameters,
        versions=_versions(),
        metadata=_metadata_text(tables.metadata),
        sdmetrics=_sdmetrics_figures(scored.synthetic, tables.name, len(columns) > 1),
    )


def _render(**parts: Any) -> str:
    """Fill the template; everything that JavaScript draws goes in as one block of JSON."""
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    history = parts.pop('history')
    drawn = {
        'columns': parts['columns'],
        'pairs': parts['pairs'],
        'sdmetrics': parts.pop('sdmetrics'),
        'history': None if history is None else history.to_dict(orient='list'),
        'colours': {'real': REAL_COLOUR, 'synthetic': SYNTHETIC_COLOUR, 'scale': COLOUR_SCALE},
    }
    environment = Environment(
        loader=PackageLoader('sdv_nvib', '.'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # Inside a script element only '<' could end it.
    data = json.dumps(drawn, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c')
    return environment.get_template('report.html').render(
        **parts, data=data, plotlyjs=get_plotlyjs().replace('</script', '<\\/script')
    )
