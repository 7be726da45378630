"""Both import orders work, in fresh interpreters: SDV loads this package as an add-on."""

import subprocess
import sys

import pytest

ORDERS = {
    'ours first': 'import sdv_nvib; from sdv.single_table import NVIBSynthesizer as registered',
    "SDV's first": 'from sdv.single_table import NVIBSynthesizer as registered; import sdv_nvib',
    'our module first': (
        'from sdv_nvib.synthesizer import NVIBSynthesizer as registered; import sdv_nvib, sdv'
    ),
}
CHECK = """
import sdv.single_table
assert registered is sdv_nvib.NVIBSynthesizer is sdv.single_table.NVIBSynthesizer
assert registered.__module__ == 'sdv_nvib.synthesizer'
print('one class')
"""


@pytest.mark.parametrize('order', ORDERS)
def test_the_class_is_one_and_registered_whatever_is_imported_first(order):
    run = subprocess.run(
        [sys.executable, '-W', 'always', '-c', ORDERS[order] + CHECK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == 'one class\n'
    assert 'Failed to load' not in run.stderr
    assert 'sdv_nvib' not in run.stderr


def test_one_table_and_one_laptop_need_nothing_of_large_scale():
    script = """
import sys
absent = ('pyarrow', 'pyspark', 'ray')
sys.modules.update(dict.fromkeys(absent))  # as if they were not installed
import pandas as pd
import sdv_nvib, sdv_nvib.cli
from sdv.metadata import Metadata
metadata = Metadata.load_from_dict({'tables': {'t': {'columns': {'x': {'sdtype': 'numerical'}}}}})
synthesizer = sdv_nvib.NVIBSynthesizer(metadata, epochs=1, d_model=8, nhead=1)
synthesizer.fit({'t': pd.DataFrame({'x': range(40)})})
assert len(synthesizer.sample(10)['t']) == 10
import torch.distributed
assert not torch.distributed.is_initialized()
for call in (synthesizer.fit_dataset, lambda folder: synthesizer.sample_to_parquet(folder, 10)):
    try:
        call('folder')
    except sdv_nvib.InvalidParameterError as error:
        assert "pip install 'sdv-nvib[parquet]'" in str(error), error
    else:
        raise AssertionError(call)
assert not any(sys.modules[name] for name in absent)
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script], check=True)
