"""Draw many rows in parts, each written to a file; a call that was killed goes on."""

import tempfile

import pandas as pd
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

if __name__ == '__main__':  # with more workers, other processes read this file too
    real, metadata = load_demo()
    synthesizer = NVIBSynthesizer(metadata, epochs=2, batch_size=128)
    synthesizer.fit({TABLE: real})
    with tempfile.TemporaryDirectory() as folder:
        paths = synthesizer.sample_to_parquet(folder, 2_000, rows_per_part=500, workers=1)
        for path in paths:
            print(path.name, len(pd.read_parquet(path)))
