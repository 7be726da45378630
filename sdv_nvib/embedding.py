"""A fitted synthesizer as a step of scikit-learn: rows in, one vector per row out.

Beside the command line, last in the flow.
"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

from sdv_nvib.synthesizer import NVIBSynthesizer

__all__ = ['RowEmbedder']


class RowEmbedder(TransformerMixin, BaseEstimator):
    """Vectors of rows, `NVIBSynthesizer.encode(...).embedding`, as a scikit-learn transformer.

    The synthesizer has been fitted elsewhere: `fit` learns nothing, also in a pipeline and in
    cross-validation, and clones share the synthesizer.

    Args:
        synthesizer: A fitted synthesizer.
        num_orders: Column orders that components are averaged over, in any-order generation.

    Examples:
        >>> from sklearn.decomposition import PCA
        >>> from sklearn.pipeline import make_pipeline
        >>> from sdv.metadata import Metadata
        >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
        >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
        >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
        >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
        >>> synthesizer.fit({'people': table})
        >>> pipeline = make_pipeline(RowEmbedder(synthesizer), PCA(2))
        >>> pipeline.fit_transform(table).shape
        (80, 2)
    """

    def __init__(self, synthesizer: NVIBSynthesizer, num_orders: int = 8) -> None:
        self.synthesizer = synthesizer
        self.num_orders = num_orders

    def __sklearn_clone__(self) -> 'RowEmbedder':
        return RowEmbedder(self.synthesizer, self.num_orders)

    def __sklearn_is_fitted__(self) -> bool:
        return self.synthesizer.get_info()['is_fit']

    def fit(self, rows: pd.DataFrame, y: Any = None) -> 'RowEmbedder':
        """Do nothing: the synthesizer has been fitted."""
        return self

    def transform(self, rows: pd.DataFrame) -> np.ndarray:
        """One vector per row, `(N, d_model)`.

        Args:
            rows: N rows of the synthesizer's table, with all of its columns.

        Raises:
            NotFittedError: The synthesizer has not been fitted.
            InvalidParameterError: `num_orders` is below 1.
            UnknownValueError: A value that the training data did not have.
        """
        (table,) = self.synthesizer.get_metadata().tables
        return self.synthesizer.encode({table: rows}, num_orders=self.num_orders).embedding

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the vector's numbers."""
        names = [f'embedding{i}' for i in range(self.synthesizer.d_model)]
        return np.array(names, dtype=object)
