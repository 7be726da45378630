"""NVIB transformer VAE for single tables, a plugin for the Synthetic Data Vault (SDV).

`NVIBSynthesizer` is also found as `sdv.single_table.NVIBSynthesizer`.
"""

# SDV loads this package's entry point at the end of its own import: it must come first, so that
# `import sdv_nvib` and `import sdv` work in either order.
import sdv  # noqa: F401, I001

from sdv_nvib.embedding import RowEmbedder
from sdv_nvib.errors import (
    ConditionError,
    InvalidParameterError,
    InvalidTableError,
    ModelFileError,
    NotFittedError,
    NVIBError,
    StorageError,
    TrainingError,
    UnknownValueError,
    WorkerError,
)
from sdv_nvib.private_training import PrivacyGuarantee
from sdv_nvib.quality import QualityEvaluation, evaluate_quality, save_plot
from sdv_nvib.report import write_report
from sdv_nvib.synthesizer import NVIBSynthesizer, RowEncoding

from sdv_nvib._version import __version__

__all__ = [
    'ConditionError',
    'InvalidParameterError',
    'InvalidTableError',
    'ModelFileError',
    'NVIBError',
    'NVIBSynthesizer',
    'NotFittedError',
    'PrivacyGuarantee',
    'QualityEvaluation',
    'RowEmbedder',
    'RowEncoding',
    'StorageError',
    'TrainingError',
    'UnknownValueError',
    'WorkerError',
    '__version__',
    'evaluate_quality',
    'save_plot',
    'write_report',
]
