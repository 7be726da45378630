"""The command line `sdv-nvib`. Last in the flow: it reads files, calls the rest, writes files.

Results go to stdout or a file, progress and warnings to stderr. A file appears under its name when
it is whole, and replaces none without `--force`. Errors are one line with the remedy; exit codes
are 0, 1 (the task failed), 2 (the command is wrong).
"""

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np
import pandas as pd
from sdv.metadata import Metadata
from sdv.metadata.errors import InvalidMetadataError
from sdv.sampling import Condition
from sdv.utils import load_synthesizer

from sdv_nvib._version import __version__
from sdv_nvib.demo import TABLE, load_demo
from sdv_nvib.errors import InvalidParameterError, ModelFileError, NVIBError
from sdv_nvib.persistence import whole_file
from sdv_nvib.synthesizer import NVIBSynthesizer
from sdv_nvib.tokens import CategoricalColumn

__all__ = ['main']

FORMATS = ('.csv', '.csv.gz', '.parquet')
READ_AS_NUMBERS_OR_DATES = ('numerical', 'boolean', 'datetime', 'ordinal')
BATCH_ROWS = 10_000


# ------------------------------------------------------------------------- files


def _format(path: Path) -> str:
    """Return the ending of a table's file."""
    ending = next((ending for ending in FORMATS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise InvalidParameterError(
            f'A table is a file that ends in one of {FORMATS}, received {str(path)!r}. Rename or '
            'convert it.'
        )
    return ending


def _read_table(path: Path, metadata: Metadata | None = None) -> pd.DataFrame:
    """Read a table; with metadata, a CSV file's labels and ids stay text ('007' is not 7)."""
    texts: dict[str, type] = {}
    labels: dict[str, list] = {}
    if metadata is not None:
        columns = next(iter(metadata.to_dict()['tables'].values()))['columns']
        labels = {name: column.get('range_values') for name, column in columns.items()}
        texts = {
            name: str
            for name, column in columns.items()
            if (column['sdtype'] not in READ_AS_NUMBERS_OR_DATES or column.get('range_values'))
            and all(isinstance(value, str) for value in column.get('range_values') or [])
        }
    is_parquet = _format(path) == '.parquet'
    try:
        table = pd.read_parquet(path) if is_parquet else _read_csv(path, texts, labels)
    except (ValueError, OSError) as error:  # of pandas, PyArrow and gzip: bytes of another kind
        reason = str(error).strip('. \n')
        kind = 'Parquet' if is_parquet else 'CSV with commas, a line of names and UTF-8 text'
        raise InvalidParameterError(
            f'{str(path)!r} must hold a table as {kind}, and cannot be read as such ({reason}). '
            'Convert it, or name another file.'
        ) from error
    if table.empty:
        raise InvalidParameterError(
            f'{str(path)!r} must hold rows, it has {len(table)} of {table.shape[1]} columns. Name '
            'another file.'
        )
    return table


def _read_csv(path: Path, texts: dict[str, type], labels: dict[str, list]) -> pd.DataFrame:
    """Read a table, in which a label such as 'NA' that the metadata list is not missing."""
    table = pd.read_csv(path, dtype=texts)
    doubtful = [
        name for name in texts if name in table and labels.get(name) and table[name].isna().any()
    ]
    if doubtful:
        as_text = pd.read_csv(path, usecols=doubtful, dtype=str, keep_default_na=False)
        for name in doubtful:
            table[name] = table[name].where(~as_text[name].isin(labels[name]), as_text[name])
    return table


def _read_metadata(path: Path) -> Metadata:
    """Read SDV's metadata."""
    try:
        return Metadata.load_from_json(path)
    except (ValueError, InvalidMetadataError) as error:
        raise InvalidParameterError(
            f'{str(path)!r} must hold metadata as JSON ({error}). `sdv-nvib detect` makes such a '
            'file.'
        ) from error


def _require_free(path: Path | None, force: bool) -> None:
    """Refuse to overwrite, and files in no folder, before any work is done."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise InvalidParameterError(
            f'{str(path)!r} must be in a folder, and {str(path.parent)!r} is none. Make it first.'
        )
    if path.exists() and not force:
        raise InvalidParameterError(
            f'{str(path)!r} is there already. Name another file, or overwrite it with --force.'
        )


def _write_table(table: pd.DataFrame, path: Path | None) -> None:
    """Write a table to a file, or as CSV to stdout."""
    if path is None:
        click.echo(table.to_csv(index=False), nl=False)
        return
    ending = _format(path)
    with whole_file(path) as part:
        if ending == '.parquet':
            table.to_parquet(part, index=False)
        else:
            table.to_csv(part, index=False)


def _write_text(text: str, path: Path | None) -> None:
    """Write text to a file, or to stdout."""
    if path is None:
        click.echo(text)
        return
    with whole_file(path) as part:
        part.write_text(text + '\n', encoding='utf-8')


def _load(model: Path) -> tuple[NVIBSynthesizer, Metadata, str]:
    """Return a saved synthesizer, its metadata and the name of its table."""
    try:
        synthesizer = load_synthesizer(model)
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = f'({type(error).__name__}: {error})'
        raise ModelFileError(
            f'{str(model)!r} is no model that these versions can load {reason}. Give a file that '
            '`sdv-nvib fit` wrote, or fit again.'
        ) from error
    if not isinstance(synthesizer, NVIBSynthesizer):
        raise ModelFileError(
            f'{str(model)!r} must hold an NVIBSynthesizer, it holds a '
            f'{type(synthesizer).__name__}. Give a file that `sdv-nvib fit` wrote.'
        )
    metadata = synthesizer.get_metadata()
    return synthesizer, metadata, next(iter(metadata.tables))


# ------------------------------------------------------------------------- the frame


class _Commands(click.Group):
    """Commands whose errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn_on(sys.stderr)
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params['debug']:
                raise
            reason = _reason(error)
            line = ' '.join(str(reason).split()) or type(reason).__name__
            click.echo(f'Error: {line} (more with sdv-nvib --debug)', err=True)
            ctx.exit(1)


def _reason(error: BaseException) -> BaseException:
    """Return the first of our own errors, where SDV raised another because of it."""
    link, first = error.__cause__, error
    while link is not None:
        first = link if isinstance(link, NVIBError) else first
        link = link.__cause__
    return first


def _warn_on(stream: TextIO) -> Callable[..., None]:
    """A function that says a warning in one line."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f'Warning: {" ".join(str(message).split())}', file=stream)

    return show


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Leave out SDV's progress lines, which have no switch; warnings and errors are still said."""
    with redirect_stderr(io.StringIO()) if quiet else nullcontext():
        yield


def _options(*options: Callable) -> Callable:
    """Several options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


IN_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
force_option = click.option('--force', is_flag=True, help='Overwrite files that are there.')
quiet_option = click.option('--quiet', is_flag=True, help='No progress on stderr.')
scoring_options = _options(
    click.argument('model', type=IN_FILE),
    click.argument('real', type=IN_FILE),
    click.option('--test', type=IN_FILE, help='Real rows not fitted on, for privacy and utility.'),
    click.option('--target', help='Column to predict, for utility.'),
    click.option('--sensitive', multiple=True, help='Column that an attacker wants to know.'),
    click.option('--known', multiple=True, help='Column that an attacker knows.'),
    click.option('--rows', type=click.IntRange(1), help='Rows to sample; as many as REAL has.'),
)


@click.group(
    cls=_Commands,
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100},
)
@click.option('--debug', is_flag=True, help='Show the whole traceback of an error.')
@click.version_option(__version__, prog_name='sdv-nvib')
def main(debug: bool) -> None:
    """Synthetic tables with a transformer VAE and a nonparametric bottleneck (NVIB).

    Tables are .csv, .csv.gz or .parquet files. Load models only from people you trust: a model
    file can run code.

    \b
    Examples:
      sdv-nvib demo trial
      sdv-nvib detect people.csv -o metadata.json
      sdv-nvib fit people.csv metadata.json -o model.pkl
      sdv-nvib sample model.pkl --rows 1000 -o synthetic.csv
      sdv-nvib report model.pkl people.csv -o report.html
    """


# ------------------------------------------------------------------------- the commands


@main.command()
@click.argument('table', type=IN_FILE)
@click.option('-o', '--output', type=OUT_FILE, help='JSON file; stdout when left out.')
@click.option('--table-name', default='table', show_default=True, help='Name in the metadata.')
@force_option
def detect(table: Path, output: Path | None, table_name: str, force: bool) -> None:
    """Guess the metadata of TABLE. Read them before fitting: a guess can be wrong.

    \b
    Example:
      sdv-nvib detect people.csv -o metadata.json
    """
    _require_free(output, force)
    metadata = Metadata.detect_from_dataframes({table_name: _read_table(table)})
    _write_text(json.dumps(metadata.to_dict(), indent=4), output)


def _parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE pairs of `--set`; values are JSON, or text where they are none."""
    parameters: dict[str, Any] = {}
    for name, text in _split(pairs, '--set'):
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    known = sorted(set(NVIBSynthesizer.__init__.__annotations__) - {'metadata', 'return'})
    unknown = set(parameters) - set(known)
    if unknown:
        raise InvalidParameterError(
            f'--set must name parameters of NVIBSynthesizer, received {sorted(unknown)}. '
            f'Possible: {", ".join(known)}.'
        )
    return parameters


def _split(pairs: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    """Split NAME=VALUE at the first equals sign."""
    wrong = [pair for pair in pairs if '=' not in pair]
    if wrong:
        raise click.BadParameter(f'{wrong[0]!r} is not of the form name=value.', param_hint=option)
    return [(name, value) for name, _, value in (pair.partition('=') for pair in pairs)]


@main.command()
@click.argument('table', type=IN_FILE)
@click.argument('metadata', type=IN_FILE)
@click.option('-o', '--output', type=OUT_FILE, required=True, help='Model file to write.')
@click.option('--epochs', type=click.IntRange(1), help='Most passes over the rows.')
@click.option(
    '--seed', type=click.IntRange(0), default=0, show_default=True, help='Seed of the fit.'
)
@click.option('--set', 'others', multiple=True, metavar='NAME=VALUE', help='Any other parameter.')
@force_option
@quiet_option
def fit(
    table: Path,
    metadata: Path,
    output: Path,
    epochs: int | None,
    seed: int,
    others: tuple[str, ...],
    force: bool,
    quiet: bool,
) -> None:
    """Fit a model to TABLE, described by METADATA (JSON), and save it.

    \b
    Examples:
      sdv-nvib fit people.csv metadata.json -o model.pkl
      sdv-nvib fit people.csv metadata.json -o model.pkl --epochs 50 --set d_model=96
    """
    _require_free(output, force)
    described = _read_metadata(metadata)
    parameters = {'epochs': epochs, 'seed': seed, 'verbose': not quiet} | _parameters(others)
    synthesizer = NVIBSynthesizer(described, **parameters)
    name = next(iter(described.tables))
    synthesizer.fit({name: _read_table(table, described)})
    with whole_file(output) as part:
        synthesizer.save(part)


def _condition(
    synthesizer: NVIBSynthesizer, table_name: str, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """Return column=value conditions with the values' types as the model draws them."""
    drawn = synthesizer.sample(num_rows=1)[table_name]
    synthesizer.reset_sampling()
    labels = {
        column.name: {str(label): label for label in column.categories}
        for column in synthesizer._schema.columns
        if isinstance(column, CategoricalColumn)
    }
    values: dict[str, Any] = {}
    for name, text in _split(pairs, '--condition'):
        if name not in drawn:
            raise InvalidParameterError(
                f"Table '{table_name}' has no column {name!r} to condition on. Possible: "
                f'{", ".join(map(str, drawn.columns))}.'
            )
        value: Any = text
        known = labels.get(name, {})
        spelled = text if text in known else text.capitalize()  # true is True
        if text == '':
            value = np.nan
        elif spelled in known:
            value = known[spelled]
        elif pd.api.types.is_bool_dtype(drawn[name]) and text.lower() in ('true', 'false'):
            value = text.lower() == 'true'
        elif pd.api.types.is_numeric_dtype(drawn[name]):
            value = pd.to_numeric(text, errors='coerce')
            if pd.isna(value):
                raise InvalidParameterError(
                    f"Table '{table_name}', column {name!r} holds numbers, received {text!r} as a "
                    f'condition. Give a number, or nothing after the sign for a missing value.'
                )
        values[name] = value
    return values


@main.command()
@click.argument('model', type=IN_FILE)
@click.option('--rows', type=click.IntRange(1), help='Rows to draw; 100, or as many as --like has.')
@click.option('-o', '--output', type=OUT_FILE, help='Table to write; CSV on stdout when left out.')
@click.option(
    '--condition',
    'conditions',
    multiple=True,
    metavar='COLUMN=VALUE',
    help='Every row has this value; nothing after the sign is a missing value. Repeatable.',
)
@click.option(
    '--like', type=IN_FILE, help='Table of known columns; the others are drawn for each row.'
)
@click.option(
    '--to-parquet',
    'folder',
    type=click.Path(file_okay=False, path_type=Path),
    help='Folder of Parquet files in place of a table; the same command goes on where it ended.',
)
@click.option(
    '--workers', type=click.IntRange(1), help='Processes for --to-parquet; one if left out.'
)
@force_option
@quiet_option
def sample(
    model: Path,
    rows: int | None,
    output: Path | None,
    conditions: tuple[str, ...],
    like: Path | None,
    folder: Path | None,
    workers: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Draw synthetic rows from MODEL. The same command draws the same rows.

    \b
    Examples:
      sdv-nvib sample model.pkl --rows 1000 -o synthetic.parquet
      sdv-nvib sample model.pkl --rows 50 --condition sex=F --condition age=30
      sdv-nvib sample model.pkl --like known.csv -o completed.csv
      sdv-nvib sample model.pkl --rows 1000000 --to-parquet people --workers 4
    """
    if like is not None and (conditions or rows):
        raise click.UsageError('--like gives rows and values: leave out --rows and --condition.')
    if folder is not None and (output or like):
        raise click.UsageError('--to-parquet takes the place of -o, and does not go with --like.')
    if workers is not None and folder is None:
        raise click.UsageError('--workers goes with --to-parquet.')
    _require_free(output, force)
    if output is not None:
        _format(output)
    synthesizer, metadata, name = _load(model)
    batch_size = None if quiet else BATCH_ROWS  # SDV shows its line where there are batches
    rows = rows or 100
    wanted = (
        [Condition(_condition(synthesizer, name, conditions), num_rows=rows)] if conditions else []
    )
    if folder is not None:
        synthesizer.verbose = not quiet
        synthesizer.sample_to_parquet(folder, rows, workers=workers or 1, conditions=wanted)
        return
    with _progress(quiet):
        if like is not None:
            known = _read_table(like, metadata)
            drawn = synthesizer.sample_remaining_columns(known, batch_size=batch_size)
        elif wanted:
            drawn = synthesizer.sample_from_conditions(wanted, batch_size=batch_size)
        else:
            drawn = synthesizer.sample(num_rows=rows, batch_size=batch_size)
    _write_table(drawn[name], output)


@main.command()
@scoring_options
@click.option('-o', '--output', type=OUT_FILE, help='CSV file of the scores; stdout when left out.')
@force_option
@quiet_option
def evaluate(
    model: Path,
    real: Path,
    test: Path | None,
    target: str | None,
    sensitive: tuple[str, ...],
    known: tuple[str, ...],
    rows: int | None,
    output: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Sample from MODEL and score the rows against the REAL table.

    \b
    Example:
      sdv-nvib evaluate model.pkl people.csv --test unseen.csv --target income
    """
    _require_free(output, force)
    if output is not None:
        _format(output)
    synthesizer, metadata, _ = _load(model)
    evaluation = synthesizer.evaluate(
        _read_table(real, metadata),
        rows,
        test=None if test is None else _read_table(test, metadata),
        target=target,
        sensitive=list(sensitive),
        known=list(known) or None,
        verbose=not quiet,
    )
    _write_table(evaluation.summary, output)


@main.command()
@scoring_options
@click.option(
    '-o',
    '--output',
    type=OUT_FILE,
    default='report.html',
    show_default=True,
    help='Page to write.',
)
@force_option
@quiet_option
def report(
    model: Path,
    real: Path,
    test: Path | None,
    target: str | None,
    sensitive: tuple[str, ...],
    known: tuple[str, ...],
    rows: int | None,
    output: Path,
    force: bool,
    quiet: bool,
) -> None:
    """Sample from MODEL and write an HTML page that sets the rows beside the REAL table.

    \b
    Example:
      sdv-nvib report model.pkl people.csv --test unseen.csv --target income -o report.html
    """
    _require_free(output, force)
    synthesizer, metadata, _ = _load(model)
    synthesizer.write_report(
        output,
        _read_table(real, metadata),
        rows,
        test=None if test is None else _read_table(test, metadata),
        target=target,
        sensitive=list(sensitive),
        known=list(known) or None,
        verbose=not quiet,
    )
    click.echo(output)


@main.command()
@click.argument('folder', type=click.Path(file_okay=False, path_type=Path))
@click.option('--epochs', type=click.IntRange(1), help='Most passes over the rows.')
@force_option
@quiet_option
def demo(folder: Path, epochs: int | None, force: bool, quiet: bool) -> None:
    """Do everything once on a small table, and leave the files in FOLDER.

    \b
    Example:
      sdv-nvib demo trial
    """
    names = ('real.csv', 'test.csv', 'metadata.json', 'model.pkl', 'synthetic.csv', 'report.html')
    paths = [folder / name for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        _require_free(path, force)
    table, metadata = load_demo()
    real, test = table.head(160), table.tail(55)
    synthesizer = NVIBSynthesizer(metadata, epochs=epochs, verbose=not quiet)
    synthesizer.fit({TABLE: real})
    _write_table(real, paths[0])
    _write_table(test, paths[1])
    _write_text(json.dumps(metadata.to_dict(), indent=4), paths[2])
    with whole_file(paths[3]) as part:
        synthesizer.save(part)
    _write_table(synthesizer.sample(num_rows=len(real))[TABLE], paths[4])
    synthesizer.write_report(paths[5], real, test=test, target='placed', verbose=not quiet)
    for path in paths:
        click.echo(path)


if __name__ == '__main__':
    sys.exit(main())
