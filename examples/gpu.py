"""Fit on a GPU where there is one; a saved model samples on any device."""

import tempfile
from pathlib import Path

from sdv.single_table import NVIBSynthesizer
from sdv.utils import load_synthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=2, enable_gpu=True)
synthesizer.fit({TABLE: real})
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'model.pkl'
    synthesizer.save(path)
    print(load_synthesizer(path).sample(num_rows=3)[TABLE].T)
