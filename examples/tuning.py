"""Compare settings by the best held-out reconstruction: nats per row, lower is better."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
for learning_rate in (1e-3, 4e-3):
    synthesizer = NVIBSynthesizer(metadata, epochs=5, learning_rate=learning_rate)
    synthesizer.fit({TABLE: real})
    best = synthesizer.get_loss_values()['Validation Reconstruction'].min()
    print(f'learning_rate={learning_rate:g}: {best:.2f} nats')
