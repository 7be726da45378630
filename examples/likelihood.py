"""Rows that do not fit: the lower the likelihood, the more of an anomaly."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=10)
synthesizer.fit({TABLE: real})

odd = real.head(20).copy()
odd['placed'] = ~odd['placed'].astype(bool)  # but the salary stays
for name, rows in (('real', real.head(20)), ('odd', odd)):
    nats = synthesizer.log_likelihood({TABLE: rows}, num_orders=16)
    print(name, 'log-likelihood, nats per row:', round(nats.mean(), 1))

# Which column makes them odd?
terms = synthesizer.log_likelihood({TABLE: odd}, per_column=True).mean()
print(terms.sort_values().head(3).round(2).to_string())
