"""Errors of the package: one base class, each child also an error that callers already catch.

A message states the rule, the value received (with table and column where there is one) and the
remedy. First in the flow: this module imports none of ours.
"""

from sdv.errors import (
    ConstraintsNotMetError,
    InvalidDataError,
    SamplingError,
    SynthesizerInputError,
)

__all__ = [
    'ConditionError',
    'InvalidParameterError',
    'InvalidTableError',
    'ModelFileError',
    'NVIBError',
    'NotFittedError',
    'StorageError',
    'TrainingError',
    'UnknownValueError',
    'WorkerError',
]


class NVIBError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidParameterError(NVIBError, SynthesizerInputError, ValueError):
    """An argument is out of its range."""


class InvalidTableError(NVIBError, InvalidDataError, ValueError):
    """A table cannot be modelled as it is.

    Args:
        errors: One message, or several, each naming the rule, the column and the remedy.
    """

    def __init__(self, errors: str | list[str]) -> None:
        super().__init__([errors] if isinstance(errors, str) else errors)


class UnknownValueError(NVIBError, ValueError):
    """A value was given that the fitted model has no token for."""


class ConditionError(NVIBError, ConstraintsNotMetError, ValueError):
    """Given values break a constraint, or no rows with them could be drawn."""


class NotFittedError(NVIBError, SamplingError, RuntimeError):
    """Something was asked of a model that has not been fitted yet."""


class TrainingError(NVIBError, RuntimeError):
    """Training could not produce a usable model."""


class ModelFileError(NVIBError, ValueError):
    """A saved model or checkpoint cannot be trusted, understood or used here."""


class StorageError(NVIBError, OSError):
    """A file could not be written or read; what is in memory stays usable."""


class WorkerError(NVIBError, RuntimeError):
    """Worker processes ended before their work was done; what is written stays."""
