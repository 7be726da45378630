"""Numbers to a scale on which they are as normal as a power can make them, and back.

Below tokens, whose few numbers are smooth on that scale. No torch here.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import boxcox1p, inv_boxcox1p
from scipy.stats import boxcox_llf

__all__ = ['PowerTransform']

MAX_POWER = 3.0  # on either side of 0; beyond, single numbers decide


class PowerTransform:
    """Box and Cox's power of one plus numbers' distances from their lowest, in units of the median.

    Args:
        lowest: The lowest number.
        unit: What the distances are divided by.
        raised: Powers of the numbers that it was made of, `(N,)`.
        power: Box and Cox's lambda.

    References:
        Box and Cox, An analysis of transformations, Journal of the Royal Statistical Society B 26
        (1964).
    """

    def __init__(self, lowest: float, unit: float, raised: np.ndarray, power: float) -> None:
        self._lowest, self._unit, self._power = lowest, unit, power
        self._mean, self._spread = raised.mean(), raised.std()

    @classmethod
    def of(cls, numbers: np.ndarray) -> 'PowerTransform | None':
        """That of finite numbers, `(N,)`; `None` of fewer than three, and where a float ends."""
        if len(np.unique(numbers)) < 3:
            return None
        with np.errstate(all='ignore'):
            lowest = numbers.min()
            above = numbers - lowest
            unit = np.median(above) or above.mean()
            distances = above / unit
            if not np.isfinite(distances.max() / unit):
                return None
            power = minimize_scalar(
                lambda power: -boxcox_llf(power, 1 + distances),
                bounds=(-MAX_POWER, MAX_POWER),
                method='bounded',
            ).x
            raised = boxcox1p(distances, power)
            if not (np.isfinite(raised).all() and np.ptp(raised) > 0):
                return None
            return cls(lowest, unit, raised, power)

    def forward(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers to scores: mean 0, variance 1 and little skew over those it was made of."""
        raised = boxcox1p((numbers - self._lowest) / self._unit, self._power)
        return (raised - self._mean) / self._spread

    def backward(self, scores: np.ndarray) -> np.ndarray:
        """Scores to numbers; NaN beyond what any number has."""
        raised = self._mean + self._spread * scores
        return self._lowest + self._unit * inv_boxcox1p(raised, self._power)
