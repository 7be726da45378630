"""Real rows that were kept aside tell new rows from remembered ones."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo
from sdv_nvib.quality import dcr_share, exact_copies

real, metadata = load_demo()
shuffled = real.sample(frac=1, random_state=0)
train, aside = shuffled.head(108), shuffled.tail(107)

synthesizer = NVIBSynthesizer(metadata, epochs=5)
synthesizer.fit({TABLE: train})
synthetic = synthesizer.sample(num_rows=len(train))[TABLE]
print('nearer to training rows than to rows kept aside (0.5 is ideal):')
print(dcr_share(train, aside, synthetic, metadata))
print('equal to a training row:', exact_copies(train, synthetic, metadata))
