"""Shares of a column's values as you choose them; likelier or less likely rows."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=20)
synthesizer.fit({TABLE: real})

print('real shares:', real['gender'].value_counts(normalize=True).round(2).to_dict())
balanced = synthesizer.sample(200, shares={'gender': {'F': 1, 'M': 1}})[TABLE]
print('balanced:', balanced['gender'].value_counts(normalize=True).to_dict())
# Three times as many of one degree as there are, the others in their proportions.
weights = real['degree_type'].value_counts().to_dict()
weights['Others'] *= 3
tilted = synthesizer.sample(200, shares={'degree_type': weights})[TABLE]
print('tilted:', tilted['degree_type'].value_counts(normalize=True).round(2).to_dict())
typical = synthesizer.sample(200, temperature=0.5, top_p={'degree_type': 0.9})[TABLE]
print('typical rows:', typical['degree_type'].value_counts(normalize=True).round(2).to_dict())
