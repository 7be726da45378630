"""A constraint of SDV holds in every row: no placement ends before it starts."""

from sdv.cag import Inequality
from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=5)
order = Inequality(low_column_name='start_date', high_column_name='end_date', table_name=TABLE)
synthesizer.add_constraints([order])
synthesizer.fit({TABLE: real})

rows = synthesizer.sample(num_rows=200)[TABLE].dropna(subset=['start_date', 'end_date'])
print((rows['start_date'] <= rows['end_date']).mean())  # 1.0
