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


def test_a_plain_fit_imports_nothing_of_large_scale():
    script = """
import sys
import pandas as pd
import sdv_nvib
from sdv.metadata import Metadata
metadata = Metadata.load_from_dict({'tables': {'t': {'columns': {'x': {'sdtype': 'numerical'}}}}})
small = {'epochs': 1, 'd_model': 8, 'nhead': 1}
sdv_nvib.NVIBSynthesizer(metadata, **small).fit({'t': pd.DataFrame({'x': range(40)})})
import torch.distributed
assert not torch.distributed.is_initialized()
assert not {'pyarrow.dataset', 'ray'} & set(sys.modules)
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script], check=True)
