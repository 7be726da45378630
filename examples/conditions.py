"""Rows with given values: one combination, and one row per row of a table of known columns."""

import pandas as pd
from sdv.sampling import Condition
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=5)
synthesizer.fit({TABLE: real})

women = Condition({'gender': 'F', 'work_experience': True}, num_rows=20)
rows = synthesizer.sample_from_conditions([women])[TABLE]
print(rows.groupby(['gender', 'work_experience']).size())

known = pd.DataFrame({'degree_type': ['Sci&Tech', 'Others'], 'placed': [True, False]})
print(synthesizer.sample_remaining_columns(known)[TABLE].T)
