"""Tables in files: what `fit_dataset` reads, samples, holds out and keeps on disk."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from sdv.cag import Inequality
from sdv.metadata import Metadata

from sdv_nvib import InvalidParameterError, InvalidTableError, NVIBSynthesizer
from sdv_nvib import streaming as module
from sdv_nvib.streaming import RowsOnDisk, TableFiles

TINY = {
    'epochs': 2,
    'd_model': 16,
    'nhead': 2,
    'num_decoder_layers': 1,
    'dim_feedforward': 32,
    'enable_gpu': False,
}
COLUMNS = {
    'number': {'sdtype': 'numerical'},
    'whole': {'sdtype': 'numerical'},
    'kind': {'sdtype': 'categorical'},
    'yes': {'sdtype': 'boolean'},
    'day': {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d'},
    'key': {'sdtype': 'id', 'regex_format': '[a-z]{6}'},
}

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
]


def make_table(rows=500, seed=0):
    rng = np.random.default_rng(seed)
    number = np.round(rng.normal(0, 10, rows), 2)
    number[rng.random(rows) < 0.3] = 0.0
    table = pd.DataFrame(
        {
            'number': number,
            'whole': rng.integers(0, 9, rows).astype(float),
            'kind': rng.choice(['a', 'b', 'c', 'd'], rows),
            'yes': rng.random(rows) < 0.5,
            'day': pd.Timestamp('2020-01-01') + pd.to_timedelta(rng.integers(0, 900, rows), 'D'),
            'key': [
                f'{i:06d}'.translate(str.maketrans('0123456789', 'abcdefghij')) for i in range(rows)
            ],
        }
    )
    table['day'] = table['day'].dt.strftime('%Y-%m-%d')
    table.loc[rows // 2 :: 7, 'whole'] = np.nan  # none in the first files
    table.loc[rows - 1, 'kind'] = 'rare'
    return table


def write(table, folder, files=5, file_format='parquet'):
    folder.mkdir()
    for i, rows in enumerate(np.array_split(np.arange(len(table)), files)):
        part = table.iloc[rows]
        if file_format == 'parquet':
            part.to_parquet(folder / f'part-{i:03d}.parquet', index=False, row_group_size=50)
        else:
            part.to_csv(folder / f'part-{i:03d}.csv', index=False)
    return folder


def make(columns=COLUMNS, **changes):
    metadata = {'tables': {'t': {'columns': columns}}}
    if 'key' in columns:
        metadata['tables']['t']['primary_key'] = 'key'
    return NVIBSynthesizer(Metadata.load_from_dict(metadata), **{**TINY, **changes})


def assert_same_schema(one, other):
    assert one.names == other.names
    for a, b in zip(one.columns, other.columns, strict=True):
        assert vars(a).keys() == vars(b).keys()
        for name, value in vars(a).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(b, name), err_msg=f'{a.name} {name}')
            elif isinstance(value, pd.Index):
                assert list(value) == list(getattr(b, name))
            else:
                assert value == getattr(b, name), (a.name, name)


# The whole fit.


@pytest.mark.parametrize('file_format', ['parquet', 'csv'])
def test_files_are_learned_as_the_table_in_memory(file_format, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHUNK_ROWS', 64)
    table = make_table()
    plain, streamed = make(), make()
    plain.fit({'t': table.copy()})
    streamed.fit_dataset(write(table, tmp_path / 'rows', file_format=file_format))
    assert_same_schema(streamed._schema, plain._schema)
    samples = [synthesizer.sample(200)['t'] for synthesizer in (plain, streamed)]
    assert (samples[0].dtypes == samples[1].dtypes).all()
    assert set(samples[1]['kind']) <= {'a', 'b', 'c', 'd', 'rare'}
    assert samples[1]['key'].is_unique


def test_what_a_sample_misses_is_learned_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHUNK_ROWS', 100)
    monkeypatch.setattr(module, 'SAMPLE_ROWS', 300)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {'x': rng.normal(size=4000), 'kind': 'common', 'mass': rng.normal(size=4000)}
    )
    table.loc[[17, 3999], 'x'] = [-50.0, 70.0]
    table.loc[2000, 'x'] = np.nan
    table.loc[3000, 'kind'] = 'once'
    table.loc[rng.random(4000) < 0.2, 'mass'] = 0.125
    columns = {name: {'sdtype': 'numerical'} for name in ('x', 'mass')}
    synthesizer = make({**columns, 'kind': {'sdtype': 'categorical'}})
    synthesizer.fit_dataset(write(table, tmp_path / 'rows'))
    x, kind, mass = (
        next(c for c in synthesizer._schema.columns if c.name == name)
        for name in ('x', 'kind', 'mass')
    )
    assert x.has_missing
    assert (np.nanmin(x.cell_low), np.nanmax(x.cell_high)) == (-50.0, 70.0)
    assert list(kind.categories) == ['common', 'once']
    assert list(mass.points) == [0.125]
    drawn = synthesizer.sample(500)['t']
    assert drawn['x'].between(-50, 70).all() or drawn['x'].isna().any()


def test_constraints_hold_in_every_file(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 50, 200)
    table = pd.DataFrame({'low': low, 'high': low + rng.integers(0, 50, 200)})
    columns = {name: {'sdtype': 'numerical'} for name in table}
    synthesizer = make(columns)
    synthesizer.add_constraints([Inequality('low', 'high')])
    synthesizer.fit_dataset(write(table, tmp_path / 'rows'))
    drawn = synthesizer.sample(100)['t']
    assert (drawn['low'] <= drawn['high']).all()


def test_a_killed_fit_of_files_goes_on_from_its_checkpoint(tmp_path):
    folder = write(make_table(), tmp_path / 'rows')
    whole, first, second = make(epochs=4), make(epochs=4), make(epochs=4)
    whole.fit_dataset(folder)
    saved = []

    def save_twice(checkpoint, state):
        saved.append(state)
        original(checkpoint, state)
        if len(saved) == 2:
            raise RuntimeError('killed')

    from sdv_nvib.persistence import Checkpoint

    original = Checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, 'save', save_twice)
        with pytest.raises(RuntimeError, match='killed'):
            first.fit_dataset(folder, tmp_path / 'checkpoint')
    second.fit_dataset(folder, tmp_path / 'checkpoint')
    weights = (s._model.network.state_dict() for s in (whole, second))
    for one, other in zip(*(w.values() for w in weights), strict=True):
        assert torch.equal(one, other)


# The files.


def test_rows_come_in_their_order_whatever_the_chunks(tmp_path, monkeypatch):
    table = make_table(300)
    folder = write(table, tmp_path / 'rows', files=40)
    (folder / '_SUCCESS').write_text('')
    (folder / '.part.parquet').write_text('unfinished')
    for rows in (7, 64, 1000):
        monkeypatch.setattr(module, 'CHUNK_ROWS', rows)
        files = TableFiles(folder)
        read = pd.concat([part for _, part in files.chunks('')])
        pd.testing.assert_frame_equal(read, table)
        assert files.num_rows == 300


def test_lists_and_datasets_are_read(tmp_path):
    table = make_table(60)
    folder = write(table, tmp_path / 'rows', files=2)
    paths = sorted(str(path) for path in folder.iterdir())
    for source in (paths, paths[::-1], paths[0], pads.dataset(paths)):
        read = pd.concat([part for _, part in TableFiles(source).chunks('')])
        assert len(read) == (30 if isinstance(source, str) else 60)


def test_types_follow_all_files(tmp_path):
    folder = tmp_path / 'rows'
    folder.mkdir()
    pd.DataFrame({'x': [1, 2]}).to_parquet(folder / '0.parquet')
    pd.DataFrame({'x': [0.5, None]}).to_parquet(folder / '1.parquet')
    pd.DataFrame({'x': pd.Series([None, None], dtype=object)}).to_parquet(folder / '2.parquet')
    sample = TableFiles(folder).sample(0)
    assert sample['x'].tolist()[:3] == [1.0, 2.0, 0.5]
    assert sample['x'].dtype == np.float64


def test_files_that_contradict_each_other_are_refused(tmp_path):
    folder = tmp_path / 'rows'
    folder.mkdir()
    pd.DataFrame({'x': [1, 2]}).to_parquet(folder / '0.parquet')
    pd.DataFrame({'x': ['a', 'b']}).to_parquet(folder / '1.parquet')
    with pytest.raises(InvalidTableError, match='same columns in types that go together'):
        TableFiles(folder)


def test_a_csv_file_that_changes_its_mind_is_refused(tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_text('x\n' + '1\n' * 1_000_000 + 'a\n')  # beyond the block that types come from
    with pytest.raises(InvalidTableError, match='Write the table as Parquet'):
        TableFiles(path).sample(0)


@pytest.mark.parametrize(
    ('names', 'match'),
    [([], 'one kind'), (['a.parquet', 'b.csv'], 'one kind'), (['a.txt'], 'one kind')],
)
def test_other_files_are_refused(names, match, tmp_path):
    for name in names:
        (tmp_path / name).write_text('x\n1\n')
    with pytest.raises(InvalidParameterError, match=match):
        TableFiles([tmp_path / name for name in names] or tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidParameterError, match='is neither'):
        TableFiles(tmp_path / 'nowhere')


def test_files_without_rows_are_refused(tmp_path):
    make_table(10).head(0).to_parquet(tmp_path / 'none.parquet')
    with pytest.raises(InvalidTableError, match='at least one row'):
        make().fit_dataset(tmp_path)


@pytest.mark.parametrize('name', ['rare_category_threshold', 'numerical_threshold'])
def test_protection_of_files_is_refused_rather_than_forgotten(name, tmp_path):
    with pytest.raises(InvalidParameterError, match=f'{name}=1, received 5'):
        make(**{name: 5}).fit_dataset(write(make_table(20), tmp_path / 'rows'))


# The sample.


def test_samples_are_random_and_know_no_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'SAMPLE_ROWS', 1000)
    table = pd.DataFrame({'place': np.arange(10_000)})
    folder = write(table, tmp_path / 'rows')
    samples = []
    for rows in (97, 4096):
        monkeypatch.setattr(module, 'CHUNK_ROWS', rows)
        samples.append(TableFiles(folder).sample(0)['place'].to_numpy())
    np.testing.assert_array_equal(*samples)
    assert len(samples[0]) == 1000
    # Ten equal parts of the table: a chi-squared of 9 degrees of freedom.
    counts = np.bincount(samples[0] // 1000, minlength=10)
    assert ((counts - 100) ** 2 / 100).sum() < 33.7  # 99.99 %
    other = TableFiles(folder).sample(1)['place'].to_numpy()
    assert 60 < len(np.intersect1d(other, samples[0])) < 140


# Rows on disk.


def rows_on_disk(folder, table, sizes=(2**16, 5), seed=0):
    files = TableFiles(folder)
    files.sample(seed)
    return RowsOnDisk(files, lambda rows: rows.to_numpy(), sizes, seed, torch.device('cpu'))


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    for name, value in (('CHUNK_ROWS', 500), ('BLOCK_ROWS', 64), ('BUFFER_BLOCKS', 8)):
        monkeypatch.setattr(module, name, value)
    table = pd.DataFrame({'place': np.arange(5000), 'rest': np.arange(5000) % 5})
    return write(table, tmp_path / 'rows'), table


@pytest.mark.parametrize('epoch_rows', [2**20, 1500])
def test_a_pass_has_every_row_once_and_no_held_out_one(epoch_rows, numbered, monkeypatch):
    monkeypatch.setattr(module, 'EPOCH_ROWS', epoch_rows)
    rows = rows_on_disk(*numbered)
    parts = -(-rows.num_rows // epoch_rows)
    passes = []
    for start in (0, parts):
        batches = [b for epoch in range(start, start + parts) for b in rows.batches(epoch, 100)]
        passes.append(torch.cat(batches))
        assert max(len(b) for b in batches) == 100
    held_out = set(rows.held_out[:, 0].tolist())
    for one in passes:
        places = one[:, 0].tolist()
        assert len(places) == len(set(places)) == rows.num_rows
        assert set(places) | held_out == set(range(5000))
        assert not set(places) & held_out
        assert (one[:, 1] == one[:, 0] % 5).all()
    assert not torch.equal(*passes)
    assert 400 < len(held_out) < 600
    longest = max(sum(map(len, rows.batches(epoch, 100))) for epoch in range(parts))
    assert longest == rows.epoch_rows


def test_batches_mix_rows_from_everywhere(numbered):
    rows = rows_on_disk(*numbered)
    first = next(rows.batches(0, 256))[:, 0]
    assert len(torch.unique(first // 64)) >= 8  # of blocks of 64 places
    assert not torch.equal(first, first.sort().values)


def test_an_epoch_is_the_same_every_time(numbered):
    one, other = rows_on_disk(*numbered), rows_on_disk(*numbered)
    assert one.checksum == other.checksum
    for a, b in zip(one.batches(3, 64), other.batches(3, 64), strict=True):
        assert torch.equal(a, b)
    assert rows_on_disk(*numbered, seed=1).checksum != one.checksum


def test_ids_beyond_two_bytes_are_kept(tmp_path):
    table = pd.DataFrame({'place': np.arange(100) + 70_000, 'rest': 0})
    rows = rows_on_disk(write(table, tmp_path / 'rows'), table, sizes=(70_100, 1))
    assert rows.held_out.min() >= 0
    assert torch.cat(list(rows.batches(0, 64)))[:, 0].min() >= 70_000


def test_few_rows_are_their_own_validation(tmp_path):
    table = pd.DataFrame({'place': [0, 1], 'rest': [0, 1]})
    rows = rows_on_disk(write(table, tmp_path / 'rows', files=1), table)
    assert rows.num_rows == len(rows.held_out) == 2


def test_arrow_dictionaries_are_read_as_their_values(tmp_path):
    for i, values in enumerate((['a', 'b'], ['c', 'a'])):
        column = pa.array(values).dictionary_encode()
        pq.write_table(pa.table({'kind': column}), tmp_path / f'{i}.parquet')
    assert TableFiles(tmp_path).sample(0)['kind'].tolist() == ['a', 'b', 'c', 'a']
