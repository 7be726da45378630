"""A model as JSON and safetensors; a fit that a crash cannot undo; rare values kept out."""

import tempfile
from pathlib import Path

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
folder = Path(tempfile.mkdtemp())

# What fewer than five rows have is replaced before anything learns from it.
synthesizer = NVIBSynthesizer(metadata, epochs=5, rare_category_threshold=5, numerical_threshold=5)
# Killed and called again, it goes on after the last whole epoch.
synthesizer.fit({TABLE: real}, checkpoint=folder / 'checkpoint')

synthesizer.save_model(folder / 'model')
print(sorted(path.name for path in (folder / 'model').iterdir()))
loaded = NVIBSynthesizer.load_model(folder / 'model')
synthesizer.reset_sampling()
same = loaded.sample(50)[TABLE].equals(synthesizer.sample(50)[TABLE])
print('the same rows:', same)
