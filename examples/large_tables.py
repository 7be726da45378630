"""Draw many rows in batches, each written to a file as soon as it is there."""

import tempfile
from pathlib import Path

import pandas as pd
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=2, batch_size=128)
synthesizer.fit({TABLE: real})
with tempfile.TemporaryDirectory() as folder:
    synthesizer.sample(num_rows=2_000, batch_size=1_000, output_folder_path=folder)
    for path in Path(folder).iterdir():
        print(path.name, len(pd.read_csv(path)))
