"""Saved models: the same rows again, nothing executed, and an error for every damaged file."""

import datetime
import decimal
import functools
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from rdt.transformers import LabelEncoder
from safetensors.torch import load_file, save_file
from sdv.cag import (
    FixedCombinations,
    FixedIncrements,
    Inequality,
    OneHotEncoding,
    Range,
    SingleTableProgrammableConstraint,
)
from sdv.metadata import Metadata

from sdv_nvib import ModelFileError, NotFittedError, NVIBSynthesizer, StorageError
from sdv_nvib.persistence import MANIFEST, TENSORS, decode_value, encode_value

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings("ignore:No 'datetime_format' is present"),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
    pytest.mark.filterwarnings('ignore:The metadata lists columns in a different order'),
]
CHANGED_DOCUMENTS = 2000 if os.environ.get('HYPOTHESIS_PROFILE') == 'nightly' else 40
TINY = {
    'epochs': 1,
    'd_model': 8,
    'nhead': 2,
    'num_decoder_layers': 2,
    'dim_feedforward': 8,
    'enable_gpu': False,
}


def make_table(rows=120, seed=0):
    rng = np.random.default_rng(seed)
    days = pd.Timestamp('2001-01-01') + pd.to_timedelta(rng.integers(0, 5000, rows), unit='D')
    gaps = rng.random(rows) < 0.15
    return pd.DataFrame(
        {
            'key': [f'ID-{i:05d}' for i in range(rows)],
            'other key': np.arange(rows),
            'size': rng.normal(0, 100, rows).round(3),
            'count': pd.Series(rng.integers(0, 9, rows)).mask(gaps).astype('Int64'),
            'kind': pd.Series(rng.choice(['x', 'y', 'ü\u2028'], rows)).mask(gaps),
            'shelf': pd.Series(rng.choice(['x', 'y'], rows)).astype('category'),
            'grade': rng.choice(['low', 'high'], rows),
            'paid': rng.random(rows) < 0.5,
            'maybe': pd.Series(rng.random(rows) < 0.5).mask(gaps).astype('boolean'),
            'code': rng.integers(0, 3, rows),
            'day': days,
            'zoned': [f'{day:%Y-%m-%d %H:%M}+0200' for day in days],
            'text date': pd.Series(days).dt.strftime('%d.%m.%Y').mask(gaps),
            'shop': rng.choice(['s1', 's2'], rows),
            'email': [f'user{i}@example.com' for i in range(rows)],
        }
    )


COLUMNS = {
    'key': {'sdtype': 'id', 'regex_format': r'ID-\d{5}'},
    'other key': {'sdtype': 'id'},
    'size': {'sdtype': 'numerical'},
    'count': {'sdtype': 'numerical'},
    'kind': {'sdtype': 'categorical'},
    'shelf': {'sdtype': 'categorical'},
    'grade': {'sdtype': 'ordinal', 'range_values': ['low', 'mid', 'high']},
    'paid': {'sdtype': 'boolean'},
    'maybe': {'sdtype': 'boolean'},
    'code': {'sdtype': 'categorical'},
    'day': {'sdtype': 'datetime'},
    'zoned': {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d %H:%M%z'},
    'text date': {'sdtype': 'datetime', 'datetime_format': '%d.%m.%Y'},
    'shop': {'sdtype': 'id'},
    'email': {'sdtype': 'email', 'pii': True},
}


def make_metadata(columns=COLUMNS, **keys):
    return Metadata.load_from_dict({'tables': {'t': {'columns': columns, **keys}}})


def fit(table=None, columns=COLUMNS, keys=None, **changes):
    keys = {'primary_key': 'key', 'alternate_keys': ['other key']} if keys is None else keys
    synthesizer = NVIBSynthesizer(make_metadata(columns, **keys), **{**TINY, **changes})
    synthesizer.fit({'t': make_table() if table is None else table})
    return synthesizer


@pytest.fixture(scope='module')
def fitted():
    return fit()


@pytest.fixture(scope='module')
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / 'model'
    fitted.save_model(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    return shutil.copytree(saved, tmp_path / 'copy')


def checksum_again(folder):
    """Make the manifest agree with the files: what someone who means harm would do."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop('checksum', None)
    for name in manifest['files']:
        data = (folder / name).read_bytes()
        manifest['files'][name] = {'sha256': hashlib.sha256(data).hexdigest(), 'bytes': len(data)}
    plain = json.dumps(manifest, sort_keys=True).encode()
    manifest['checksum'] = hashlib.sha256(plain).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def first_rows(synthesizer, rows=50):
    synthesizer.reset_sampling()
    return synthesizer.sample(rows)['t']


# The same model again


def test_a_loaded_model_gives_the_same_rows(fitted, saved):
    loaded = NVIBSynthesizer.load_model(saved)
    expected = first_rows(fitted)
    pd.testing.assert_frame_equal(loaded.sample(50)['t'], expected)
    assert loaded.get_parameters() == fitted.get_parameters()
    assert loaded.get_metadata().to_dict() == fitted.get_metadata().to_dict()
    pd.testing.assert_frame_equal(loaded.get_loss_values(), fitted.get_loss_values())
    info, known = loaded.get_info(), fitted.get_info()
    assert info['last_fit_date'] == known['last_fit_date']
    real = {'t': make_table()}
    pd.testing.assert_frame_equal(loaded.reconstruct(real)['t'], fitted.reconstruct(real)['t'])


def test_a_loaded_model_can_be_saved_again_byte_for_byte(saved, tmp_path):
    NVIBSynthesizer.load_model(saved).save_model(tmp_path / 'again')
    for file in saved.iterdir():
        assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_fresh_interpreter_gives_the_same_rows(fitted, saved, tmp_path):
    script = (
        'import sys; from sdv_nvib import NVIBSynthesizer; '
        'rows = NVIBSynthesizer.load_model(sys.argv[1]).sample(50)["t"]; '
        'rows.to_csv(sys.argv[2], index=False)'
    )
    command = [sys.executable, '-W', 'ignore', '-c', script, str(saved), str(tmp_path / 'rows')]
    subprocess.run(command, check=True)
    assert (tmp_path / 'rows').read_text() == first_rows(fitted).to_csv(index=False)


def test_remembered_posteriors_and_integer_columns_come_back(tmp_path):
    table = make_table()[['size', 'kind']].set_axis([1, 0], axis=1)
    columns = {'0': COLUMNS['kind'], '1': COLUMNS['size']}
    synthesizer = fit(table, columns, {}, generation='single-pass', latent_source='posteriors')
    synthesizer.save_model(tmp_path / 'model')
    loaded = NVIBSynthesizer.load_model(tmp_path / 'model')
    pd.testing.assert_frame_equal(loaded.sample(40)['t'], first_rows(synthesizer, 40))


@pytest.mark.parametrize(
    'value',
    [
        None,
        True,
        3,
        2**70,
        0.1,
        -0.0,
        math.inf,
        'text \ud800 \x00',
        [1, ['a']],
        (1, 'a'),
        {'a': 1, 2: None},
        np.int8(3),
        np.float32(0.1),
        np.bool_(True),
        np.float64(math.inf),
        pd.NaT,
        pd.NA,
        pd.Timestamp('2001-02-03 04:05:06.000000007'),
        pd.Timestamp('1500-01-01').as_unit('s'),
        pd.Timestamp('2001-02-03', tz='Europe/Zurich'),
        datetime.date(1, 2, 3),
        datetime.datetime(2001, 2, 3, 4, 5),
        datetime.timezone(datetime.timedelta(hours=2)),
        decimal.Decimal('1.10'),
        np.dtype('float32'),
        pd.Int64Dtype(),
        pd.StringDtype('python'),
        *([pd.StringDtype('pyarrow')] if find_spec('pyarrow') else []),
        pd.DatetimeTZDtype(tz='UTC'),
        pd.DatetimeTZDtype(tz='UTC-03:30'),
        pd.CategoricalDtype(['b', 'a'], ordered=True),
        pd.CategoricalDtype([3, 1]),
    ],
    ids=repr,
)
def test_values_come_back_with_their_types(value):
    back = decode_value(json.loads(json.dumps(encode_value(value), allow_nan=False)))
    assert type(back) is type(value)
    assert back is value or back == value
    assert repr(back) == repr(value)


def test_a_value_of_another_type_is_refused_with_the_remedy():
    with pytest.raises(ModelFileError, match=r'received .*object.*`save`, which pickles'):
        encode_value(object())


def make_constrained_table():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 50, 90)
    days = pd.Timestamp('2001-01-01') + pd.to_timedelta(start, unit='D')
    hot = rng.integers(0, 3, 90)
    gaps = rng.random(90) < 0.2
    places = rng.integers(0, 3, 90)
    return pd.DataFrame(
        {
            'a': pd.Series(start).mask(gaps),
            'b': start + rng.uniform(0.5, 2, 90).round(2),
            'c': start + 2.5,
            'from': days.strftime('%Y-%m-%d'),
            'to': (days + pd.to_timedelta(rng.integers(1, 9, 90), unit='D')).strftime('%Y-%m-%d'),
            'city': pd.Series(np.array(['Bern', 'Rome', None])[places], dtype=object),
            'land': pd.Series(np.array(['CH', 'IT', 'FR'])[places]).astype('category'),
            'price': rng.integers(1, 20, 90) * 5,
            **{f'is {i}': (hot == i).astype(int) for i in range(3)},
        }
    )


CONSTRAINED = {
    **{name: {'sdtype': 'numerical'} for name in ('a', 'b', 'c', 'price')},
    **{name: {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d'} for name in ('from', 'to')},
    **{name: {'sdtype': 'categorical'} for name in ('city', 'land', 'is 0', 'is 1', 'is 2')},
}


def fit_constrained():
    synthesizer = NVIBSynthesizer(make_metadata(CONSTRAINED), **TINY)
    synthesizer.add_constraints(
        [
            Range('a', 'b', 'c'),
            Inequality('from', 'to'),
            FixedCombinations(['city', 'land']),
            FixedIncrements('price', 5),
            OneHotEncoding(['is 0', 'is 1', 'is 2']),
            Inequality('b', 'c', strict_boundaries=True),  # of columns that are gone: by rejection
        ]
    )
    synthesizer.fit({'t': make_constrained_table()})
    return synthesizer


def test_a_loaded_model_has_its_constraints(tmp_path):
    fitted = fit_constrained()
    assert fitted._reject_sampling_constraints
    fitted.save_model(tmp_path / 'model')
    loaded = NVIBSynthesizer.load_model(tmp_path / 'model')
    rows = loaded.sample(60)['t']
    pd.testing.assert_frame_equal(rows, first_rows(fitted, 60))
    loaded.validate_constraints(rows)
    described = [[c.get_constraint_dict() for c in s.get_constraints()] for s in (loaded, fitted)]
    assert described[0] == described[1]
    data = {'t': make_constrained_table()}
    pd.testing.assert_series_equal(loaded.log_likelihood(data), fitted.log_likelihood(data))
    given = pd.DataFrame({'city': ['Rome'] * 3, 'land': ['IT'] * 3, 'price': [10, 15, 20]})
    for synthesizer in (loaded, fitted):
        synthesizer.reset_sampling()
    pd.testing.assert_frame_equal(
        loaded.sample_remaining_columns(given)['t'], fitted.sample_remaining_columns(given)['t']
    )
    loaded.save_model(tmp_path / 'again')
    for file in (tmp_path / 'model').iterdir():
        assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes(), file.name


HOSTILE_CONSTRAINTS = {
    'class outside the list': lambda d: d[0].update({'class': 'ProgrammableConstraint'}),
    'unknown argument': lambda d: d[0]['parameters'].update({'evil': 1}),
    'another column': lambda d: d[0]['parameters'].update({'low_column_name': 'x'}),
    'another table': lambda d: d[1]['parameters'].update({'table_name': 'x'}),
    'attribute outside the list': lambda d: d[1]['learned'].update({'_reverse_transform': 1}),
    'attribute of a wrong type': lambda d: d[1]['learned'].update({'_dtypes': 'x'}),
    'types of no column': lambda d: d[1]['learned'].update({'_dtypes': encode_value({'t': {}})}),
    'combinations of another length': lambda d: d[2]['learned'].update(
        {'_ids_to_combinations': encode_value({'fixed_combination#0': ('Bern',)})}
    ),
    'formatter of no column': lambda d: d[0]['formatters'].append(['x', {}]),
}


@pytest.fixture(scope='module')
def saved_constrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('constrained') / 'model'
    fit_constrained().save_model(folder)
    return folder


@pytest.mark.parametrize('kind', HOSTILE_CONSTRAINTS)
def test_hostile_constraints_are_refused(kind, saved_constrained, tmp_path):
    folder = shutil.copytree(saved_constrained, tmp_path / 'copy')
    edit(folder, 'constraints.json', HOSTILE_CONSTRAINTS[kind])
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(folder)


def test_categories_that_constraints_cannot_turn_back_are_refused(saved_constrained, tmp_path):
    outcomes = {}
    for place, column in enumerate(
        json.loads((saved_constrained / 'model.json').read_text())['schema']
    ):
        for value in (0, 'nowhere') if column.get('categories') else ():
            folder = shutil.copytree(saved_constrained, tmp_path / f'{place} {value}')
            edit(folder, 'model.json', functools.partial(change_category, place, value))
            outcomes[column['name'], value] = load_and_use(folder)
    assert outcomes['a#b#c.nan_component', 0] == 'refused'  # by chance only, were one row tried


def change_category(place, value, document):
    document['schema'][place]['categories'][-1] = value


# What cannot be saved


class Even(SingleTableProgrammableConstraint):
    """A constraint of the user's own."""

    def fit(self, data, metadata):
        pass

    def transform(self, data):
        return data

    def get_updated_metadata(self, metadata):
        return metadata

    def reverse_transform(self, transformed_data):
        return transformed_data

    def is_valid(self, synthetic_data):
        return synthetic_data['a'] % 2 == 0


def test_own_constraints_and_other_transformers_are_refused_with_the_remedy(tmp_path):
    constrained = NVIBSynthesizer(make_metadata({'a': {'sdtype': 'numerical'}}), **TINY)
    constrained.add_constraints([Even()])
    constrained.fit({'t': pd.DataFrame({'a': np.arange(0, 120, 2)})})
    with pytest.raises(
        ModelFileError, match=r'hold the constraints .*received a Even\. Use `save`'
    ):
        constrained.save_model(tmp_path / 'model')
    replaced = NVIBSynthesizer(make_metadata({'g': {'sdtype': 'categorical'}}), **TINY)
    labels = pd.DataFrame({'g': list('abc') * 20})
    replaced.auto_assign_transformers({'t': labels})
    with pytest.warns(UserWarning, match='might impact the quality'):
        replaced.update_transformers({'g': LabelEncoder()})
    replaced.fit({'t': labels})
    with pytest.raises(ModelFileError, match=r"column 'g' has a LabelEncoder\. Use `save`"):
        replaced.save_model(tmp_path / 'model')
    assert not list(tmp_path.iterdir())


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        NVIBSynthesizer(make_metadata()).save_model(tmp_path / 'model')


def test_a_folder_with_something_in_it_is_left_alone(fitted, saved):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(StorageError, match='new or empty folder'):
        fitted.save_model(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_file_in_the_way_is_an_error_and_the_model_stays_usable(fitted, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match='The model in memory is as it was'):
        fitted.save_model(tmp_path / 'file' / 'model')
    assert len(fitted.sample(5)['t']) == 5


@pytest.mark.parametrize('num_bytes', [100, 5000])
def test_a_full_disk_is_an_error_and_the_model_stays_usable(num_bytes, fitted, tmp_path, full_disk):
    with full_disk(num_bytes), pytest.raises(StorageError, match='free some space'):
        fitted.save_model(tmp_path / 'model')
    assert not list(tmp_path.iterdir())
    expected = first_rows(fitted)
    fitted.save_model(tmp_path / 'model')
    loaded = NVIBSynthesizer.load_model(tmp_path / 'model')
    pd.testing.assert_frame_equal(loaded.sample(50)['t'], expected)


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(fitted, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('sdv_nvib.persistence.save_file', full)
    with pytest.raises(StorageError, match='No space left'):
        fitted.save_model(tmp_path / 'model')
    assert not list(tmp_path.iterdir())
    assert len(fitted.sample(5)['t']) == 5


# Damage


def test_no_folder_and_an_empty_one_are_errors(tmp_path):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(StorageError, match='Give the folder that save_model wrote'):
            NVIBSynthesizer.load_model(folder)


def test_every_truncation_and_bit_flip_is_an_error(copy):
    rng = np.random.default_rng(0)
    for file in sorted(copy.iterdir()):
        original = file.read_bytes()
        for length in [0, 1, *rng.integers(0, len(original), 6)]:
            file.write_bytes(original[:length])
            with pytest.raises(ModelFileError):
                NVIBSynthesizer.load_model(copy)
        for place in rng.integers(0, len(original), 12):
            flipped = bytearray(original)
            flipped[place] ^= 1 << rng.integers(8)
            if file.name == MANIFEST and chr(original[place]).isspace() and place:
                continue  # one kind of space in place of another changes nothing
            file.write_bytes(bytes(flipped))
            with pytest.raises(ModelFileError):
                NVIBSynthesizer.load_model(copy)
        file.write_bytes(original)
    NVIBSynthesizer.load_model(copy)


def load_and_use(folder):
    """Load and sample, or refuse, without taking long; returns which of the two."""
    started = time.process_time()
    try:
        loaded = NVIBSynthesizer.load_model(folder)
    except ModelFileError:
        outcome = 'refused'
    else:
        assert len(loaded.sample(20)['t']) == 20
        outcome = 'loaded'
    assert time.process_time() - started < 60
    return outcome


def test_flips_under_a_right_checksum_load_or_are_errors(copy):
    rng = np.random.default_rng(1)
    outcomes = set()
    for file in sorted(copy.glob('*.*')):
        if file.name == MANIFEST:
            continue
        original = file.read_bytes()
        for place in rng.integers(0, min(len(original), 6000), 5):
            flipped = bytearray(original)
            flipped[place] ^= 1 << rng.integers(8)
            file.write_bytes(bytes(flipped))
            checksum_again(copy)
            outcomes.add(load_and_use(copy))
        file.write_bytes(original)
    assert outcomes == {'loaded', 'refused'}


STRANGE = [
    *(None, True, 0, -1, 0.5, 2**63, 10**30, 1e308, '', 'x' * 5000, '\ud800', [], {}, [[]], '%Y'),
    *('[\\w\\W]{200}', '((a{1,99}){1,99}){1,99}', '/dev/zero', '__class__', 'os.system'),
    {'type': 'decimal', 'value': '1e999999999'},
    {'type': 'timestamp', 'value': 10**30, 'unit': 'ns', 'zone': None},
    {'type': 'offset', 'value': 1e300},
    {'type': 'dtype', 'value': 'datetime64[s]'},
    {'type': 'dict', 'value': [[[1], 2]]},
    {'type': 'tuple', 'value': [1, 2]},
]


def places(node, path=()):
    """Every place in a JSON document, as the keys that lead there."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def damage(document, rng):
    """Change a random place of a JSON document: another value, one from elsewhere, or none."""
    for _ in range(rng.choice([1, 1, 2])):
        everywhere = list(places(document))
        chosen, other = rng.choice(everywhere), rng.choice(everywhere)
        parent = functools.reduce(lambda node, key: node[key], chosen[:-1], document)
        kind = rng.choice(['strange', 'strange', 'moved', 'type', 'gone'])
        if kind == 'gone':
            del parent[chosen[-1]]
        elif kind == 'type':
            value = parent[chosen[-1]]
            parent[chosen[-1]] = [value] if isinstance(value, str) else str(value)
        elif kind == 'moved':
            moved = functools.reduce(lambda node, key: node[key], other, document)
            parent[chosen[-1]] = json.loads(json.dumps(moved))
        else:
            parent[chosen[-1]] = rng.choice(STRANGE)


def test_changed_documents_load_or_are_errors(copy):
    rng = random.Random(0)
    outcomes = set()
    for _ in range(CHANGED_DOCUMENTS):
        file = rng.choice(sorted(file for file in copy.glob('*.json') if file.name != MANIFEST))
        original = file.read_bytes()
        if original == b'[]':
            continue
        document = json.loads(original)
        damage(document, rng)
        file.write_text(json.dumps(document))
        checksum_again(copy)
        outcomes.add(load_and_use(copy))
        file.write_bytes(original)
    assert outcomes == {'loaded', 'refused'}


def test_swapped_files_are_errors(copy):
    names = sorted(file.name for file in copy.iterdir() if file.name != MANIFEST)
    for one, other in itertools.pairwise(names):
        for again in (False, True):
            first, second = (copy / one).read_bytes(), (copy / other).read_bytes()
            (copy / one).write_bytes(second)
            (copy / other).write_bytes(first)
            if again:
                checksum_again(copy)
            with pytest.raises(ModelFileError):
                NVIBSynthesizer.load_model(copy)
            (copy / one).write_bytes(first)
            (copy / other).write_bytes(second)
            checksum_again(copy)


def test_another_format_and_another_major_version_say_what_to_do(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    for change, message in (
        ({'format': 'zip'}, 'must say'),
        ({'format_version': 1}, 'Load it with the version of sdv-nvib that wrote it'),
        ({'versions': {**manifest['versions'], 'rdt': '1.9.0'}}, r'Install rdt==1\.9\.0'),
    ):
        (copy / MANIFEST).write_text(json.dumps({**manifest, **change}))
        checksum_again(copy)
        with pytest.raises(ModelFileError, match=message):
            NVIBSynthesizer.load_model(copy)
    changed = {**manifest, 'versions': {**manifest['versions'], 'torch': '2.4.0'}}
    (copy / MANIFEST).write_text(json.dumps(changed))
    checksum_again(copy)
    with pytest.warns(UserWarning, match=r'torch==2\.4\.0 .*install those versions'):
        NVIBSynthesizer.load_model(copy)


def edit(folder, name, change):
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))
    checksum_again(folder)


def transformer(document, column):
    return dict(document['transformers'])[column]


HOSTILE = {
    'class outside the list': lambda d: transformer(d, 'size').update({'class': 'Popen'}),
    'attribute outside the list': lambda d: transformer(d, 'size')['learned'].update(
        {'_reverse_transform': 1}
    ),
    'attribute of a wrong type': lambda d: transformer(d, 'size')['learned'].update(
        {'_min_value': 'x'}
    ),
    'private function': lambda d: transformer(d, 'email')['parameters'].update(
        {'function_name': '__reduce__'}
    ),
    'foreign provider': lambda d: transformer(d, 'email')['parameters'].update(
        {'provider_name': 'os.path'}
    ),
    'unknown argument': lambda d: transformer(d, 'size')['parameters'].update({'evil': 1}),
    'endless regular expression': lambda d: transformer(d, 'key')['parameters'].update(
        {'regex_format': '((a{1,999}){1,999}){1,999}'}
    ),
    'long regular expression': lambda d: transformer(d, 'key')['parameters'].update(
        {'regex_format': 'a' * 10**6}
    ),
    'countless values': lambda d: transformer(d, 'key')['learned'].update(
        {'_data_cardinality': 10**15}
    ),
    'countless repetitions': lambda d: transformer(d, 'email')['learned'].update(
        {'_data_cardinality_scale': encode_value({'num_repetitions': [10**15], 'frequency': [1.0]})}
    ),
    'long personal data': lambda d: transformer(d, 'email')['parameters'].update(
        {
            'provider_name': 'lorem',
            'function_name': 'words',
            'function_kwargs': encode_value({'nb': 10**12}),
        }
    ),
    'seed out of range': lambda d: transformer(d, 'key').update({'random_seed': 2**40}),
    'column left out': lambda d: d['transformers'].pop(),
    'unknown type': lambda d: d['dtypes'].__setitem__(
        0, ['key', {'type': 'module', 'value': 'os'}]
    ),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_transformers_are_refused(kind, copy):
    edit(copy, 'transformers.json', HOSTILE[kind])
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('d_model', 2**40),
        ('dim_feedforward', 2**40),
        ('num_encoder_layers', 10**9),
        ('num_decoder_layers', 10**9),
        ('nhead', 10**9),
        ('seed', -1),
        ('generation', ['any-order']),
        ('locales', 'xx_YY'),
        ('no_such_parameter', 1),
    ],
)
def test_hostile_parameters_are_refused_before_memory_is_taken(name, value, copy):
    edit(copy, 'parameters.json', lambda d: d.update({name: value}))
    if name == 'locales':
        edit(
            copy,
            'transformers.json',
            lambda d: transformer(d, 'email')['parameters'].update({'locales': ['xx_YY']}),
        )
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '{"a":' * 100_000, '[]', 'null', '1' * 10_000, '{"a": NaN}', '']
)
@pytest.mark.parametrize('name', ['model.json', 'parameters.json', MANIFEST])
def test_hostile_json_is_refused(name, text, copy):
    (copy / name).write_text(text)
    if name != MANIFEST:
        checksum_again(copy)
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize('regex', ['(((a*)*)*)*', '(a{1000}){1000}', 'a{4294967294}', '(' * 900])
def test_a_hostile_regular_expression_of_the_metadata_is_refused(regex, copy):
    edit(
        copy,
        'metadata.json',
        lambda d: d['tables']['t']['columns']['key'].update({'regex_format': regex}),
    )
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize(
    'zone', ['dateutil//dev/zero', 'dateutil/../../etc/passwd', 'tzlocal()', '/dev/zero', '', 7]
)
def test_a_hostile_time_zone_is_refused(zone):
    for stored in (
        {'type': 'zoned dtype', 'value': zone, 'unit': 'ns'},
        {'type': 'timestamp', 'value': 0, 'unit': 'ns', 'zone': zone},
    ):
        with pytest.raises(ModelFileError, match='A time zone must be'):
            decode_value(stored)


def test_categories_of_another_type_are_refused(copy):
    def change(document):
        (maybe,) = (column for column in document['schema'] if column['name'] == 'maybe')
        maybe['categories'] = [str(category) for category in maybe['categories']]

    edit(copy, 'model.json', change)
    with pytest.raises(ModelFileError, match="type boolean, and those of column 'maybe'"):
        NVIBSynthesizer.load_model(copy)


def test_truth_values_are_no_numbers_of_a_transformer(copy):
    def change(document):
        learned = [stored['learned'] for _, stored in document['transformers'] if stored]
        next(values for values in learned if '_min_value' in values)['_min_value'] = False

    edit(copy, 'transformers.json', change)
    with pytest.raises(ModelFileError, match="must be of another type, received 'False'"):
        NVIBSynthesizer.load_model(copy)


def test_a_way_to_read_f_that_is_neither_is_refused(copy):
    edit(copy, 'model.json', lambda document: document.update(reads_mixture='no'))
    with pytest.raises(ModelFileError, match="reads_mixture must be true or false, received 'no'"):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize('value', ['no', True, -0.1, 1.5])
def test_a_sharpening_out_of_range_is_refused(copy, value):
    edit(copy, 'model.json', lambda document: document.update(sharpening=value))
    with pytest.raises(ModelFileError, match='sharpening must be a number from 0 to 1'):
        NVIBSynthesizer.load_model(copy)


@pytest.mark.parametrize('change', [[0.5], ['no'], [True], [1.0, 1.0], [], [1e9]])
def test_temperatures_out_of_range_are_refused(copy, change):
    def edited(document):
        document['temperatures'] = change + document['temperatures'][1:]

    edit(copy, 'model.json', edited)
    with pytest.raises(ModelFileError, match=r'temperatures must be .* numbers from 1 to'):
        NVIBSynthesizer.load_model(copy)


def test_temperatures_and_sharpening_come_back(copy, tmp_path):
    def change(document):
        assert document['reads_mixture']
        document['sharpening'] = 0.35
        document['temperatures'] = [1 + 0.5 * c for c in range(len(document['temperatures']))]

    edit(copy, 'model.json', change)
    NVIBSynthesizer.load_model(copy).save_model(tmp_path / 'again')
    network = NVIBSynthesizer.load_model(tmp_path / 'again')._model.network
    assert network.sharpening == 0.35
    assert network.temperatures.tolist() == [1 + 0.5 * c for c in range(network.num_columns)]


def test_a_deep_value_is_refused(copy):
    deep = [[] for _ in range(500)]
    for outer, inner in itertools.pairwise(deep):
        outer.append(inner)
    edit(copy, 'parameters.json', lambda d: d.update({'locales': deep[0]}))
    with pytest.raises(ModelFileError, match='nested'):
        NVIBSynthesizer.load_model(copy)


def test_a_path_out_of_the_folder_is_refused(copy, tmp_path):
    (tmp_path / 'secret.json').write_text('{}')
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest['files']['../secret.json'] = manifest['files']['model.json']
    (copy / MANIFEST).write_text(json.dumps(manifest))
    checksum_again(copy)
    with pytest.raises(ModelFileError, match='plain file names'):
        NVIBSynthesizer.load_model(copy)


TENSOR_DAMAGE = {
    'larger': lambda t: torch.cat([t, t]),
    'empty': lambda t: t[:0],
    'another type': lambda t: t.to(torch.float16 if t.is_floating_point() else torch.int32),
    'no numbers': lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t - 2**40,
    'without an axis': lambda t: t.flatten()[0],
}


@pytest.mark.parametrize('kind', TENSOR_DAMAGE)
def test_tensors_that_do_not_fit_are_refused(kind, copy):
    # Copies: the file, which older versions map, is written over.
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / TENSORS).items()}
    place = list(make_table().columns.drop(['key', 'other key', 'email'])).index('size')
    names = [name for name in tensors if name.startswith(f'schema.{place}.')]
    names += ['network.column_query', 'network.output_bias', 'network.encoder.0.qkv.weight']
    for name in names:
        if not tensors[name].numel():
            continue
        save_file({**tensors, name: TENSOR_DAMAGE[kind](tensors[name])}, copy / TENSORS)
        checksum_again(copy)
        with pytest.raises(ModelFileError):
            NVIBSynthesizer.load_model(copy)
    for name in names:
        save_file({k: v for k, v in tensors.items() if k != name}, copy / TENSORS)
        checksum_again(copy)
        with pytest.raises(ModelFileError):
            NVIBSynthesizer.load_model(copy)


def test_a_header_that_claims_too_much_is_refused(copy):
    header = {'x': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}}
    text = json.dumps(header).encode()
    (copy / TENSORS).write_bytes(len(text).to_bytes(8, 'little') + text)
    checksum_again(copy)
    with pytest.raises(ModelFileError):
        NVIBSynthesizer.load_model(copy)


def test_a_pickle_is_not_opened(copy):
    import pickle

    class Evil:
        def __reduce__(self):
            return (warnings.warn, ('executed',))

    for name in (TENSORS, 'model.json'):
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(pickle.dumps(Evil()))
        checksum_again(copy)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            with pytest.raises(ModelFileError):
                NVIBSynthesizer.load_model(copy)
        (copy / name).write_bytes(kept)
