"""Fill missing values in, given what is known of each row."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=10)
synthesizer.fit({TABLE: real})

holes = real.copy()
holes.loc[::3, 'degree_perc'] = None
holes.loc[::5, 'gender'] = None
guess = synthesizer.impute({TABLE: holes}, method='mean')[TABLE]
error = (guess['degree_perc'] - real['degree_perc'])[::3].abs().mean()
print('mean error of degree_perc:', round(error, 2))

# Several tables, each filled by draws: an analysis of all of them shows what is uncertain.
tables = synthesizer.impute({TABLE: holes}, num_imputations=3)
print([float(table[TABLE]['degree_perc'].mean().round(2)) for table in tables])
