"""Missing values keep their relation to other columns: no salary without a placement."""

import pandas as pd
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=10)
synthesizer.fit({TABLE: real})

synthetic = synthesizer.sample(num_rows=len(real))[TABLE]
for name, rows in (('real', real), ('synthetic', synthetic)):
    print(name, pd.crosstab(rows['placed'], rows['salary'].isna()), sep='\n')
