"""A table of a hundred rows: a smaller network, a narrower bottleneck, the held-out loss."""

from sdv.single_table import NVIBSynthesizer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(
    metadata, epochs=10, d_model=32, dim_feedforward=64, lambda_gaussian=10.0, lambda_dirichlet=10.0
)
synthesizer.fit({TABLE: real.head(100)})
columns = ['Epoch', 'Reconstruction', 'Validation Reconstruction', 'Nats']
print(synthesizer.get_loss_values()[columns].round(1))
