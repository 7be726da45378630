"""More rows of a rare class, for training alone."""

import pandas as pd
from sdv.sampling import Condition
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
counts = real['degree_type'].value_counts()
rare = counts.index[-1]

synthesizer = NVIBSynthesizer(metadata, epochs=5)
synthesizer.fit({TABLE: real})
needed = int(counts.max() - counts.min())
extra = synthesizer.sample_from_conditions([Condition({'degree_type': rare}, num_rows=needed)])
balanced = pd.concat([real, extra[TABLE]], ignore_index=True)
print(balanced['degree_type'].value_counts())
