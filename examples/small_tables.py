"""A table of a hundred rows: how much of it is learned by heart, and fewer epochs against that."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=10)
synthesizer.fit({TABLE: real.head(100)})
columns = ['Epoch', 'Reconstruction', 'Validation Reconstruction', 'Memorised']
print(synthesizer.get_loss_values()[columns].round(1))
