"""How well one ranking of nets agrees with another, beyond what their size says, with bootstrap intervals over nets.

Kendall's tau here is tau-b, as scipy's. It is a sum over pairs of nets, so a resample is a weight per net and all
resamples are one matrix product; a net drawn twice is a tie with itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, spearmanr

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A statistic and the limits of its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """What a proxy says of an accuracy.

    Attributes:
        tau: Kendall's tau.
        rho: Spearman's rho.
        partial_tau: Kendall's partial tau given the size, or its logarithm: ranks are the same.
        band_tau: Mean of the taus within bands of nets of like size.
    """

    tau: Estimate
    rho: float
    partial_tau: Estimate
    band_tau: Estimate


class Comparison:
    """Compares scores of nets with an accuracy of theirs.

    Args:
        accuracy: One number per net.
        size: One number per net: what partial tau holds fixed and bands are cut by.
        bands: Bands of equal numbers of nets; fewer where they would have less than three each.
        resamples: Bootstrap resamples of the nets.
        seed: Of the resamples, which are the same for everything that is compared.
    """

    def __init__(
        self,
        accuracy: Sequence[float],
        size: Sequence[float],
        bands: int = 4,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        count = len(accuracy)
        self._accuracy = np.asarray(accuracy, float)
        self._accuracy_signs, self._size_signs = pair_signs(self._accuracy), pair_signs(np.asarray(size, float))
        self.bands = np.array_split(np.argsort(size, kind="stable"), max(1, min(bands, count // 3)))
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self._weights = np.vstack([np.ones((1, count)), draws])  # the first row is the nets as they are

    def agreement(self, scores: Sequence[float], maximize: bool = True) -> Agreement:
        """How scores, of which more is better if ``maximize``, agree with the accuracy; NaN ranks worst."""
        ranks = worst_to_best(scores, maximize)
        signs = pair_signs(ranks)
        tau = taus(signs, self._accuracy_signs, self._weights)
        by_size = [taus(each, self._size_signs, self._weights) for each in (signs, self._accuracy_signs)]
        return Agreement(
            tau=_estimate(tau),
            rho=_rho(ranks, self._accuracy),
            partial_tau=_estimate(partial_taus(tau, *by_size)),
            band_tau=_estimate(self._band_taus(signs)),
        )

    def _band_taus(self, signs: Array) -> Array:
        """Mean over the bands in which scores and accuracies differ."""
        each = [
            taus(signs[np.ix_(band, band)], self._accuracy_signs[np.ix_(band, band)], self._weights[:, band])
            for band in self.bands
        ]
        defined = np.isfinite(each)
        return _quotient(np.where(defined, each, 0.0).sum(0), defined.sum(0))


def worst_to_best(scores: Sequence[float], maximize: bool) -> Array:
    """Dense ranks, the best highest; all that is not finite is one tie at the bottom."""
    values = np.asarray(scores, float) * (1 if maximize else -1)
    return rankdata(np.where(np.isfinite(values), values, -np.inf), method="dense").astype(float)


def pair_signs(values: Array) -> Array:
    """Sign of the difference of every two values."""
    return np.sign(values[:, None] - values[None, :])


def taus(x: Array, y: Array, weights: Array) -> Array:
    """Kendall's tau-b from the signs of pairs, for every row of weights (resamples, nets)."""

    def total(products: Array) -> Array:
        return ((weights @ products) * weights).sum(1)

    return _quotient(total(x * y), np.sqrt(total(x * x) * total(y * y)))


def partial_taus(xy: Array, xz: Array, yz: Array) -> Array:
    """Kendall's partial tau of x and y given z, from the three taus; NaN where z determines one of them."""
    left = (1 - xz**2) * (1 - yz**2)
    return _quotient(xy - xz * yz, np.sqrt(np.where(left > 1e-12, left, 0.0)))


def _quotient(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _rho(ranks: Array, accuracy: Array) -> float:
    constant = len(set(ranks)) == 1 or len(set(accuracy)) == 1
    return float("nan") if constant else float(spearmanr(ranks, accuracy).statistic)


def _estimate(values: Array) -> Estimate:
    """The first is the estimate, the others are the bootstrap's; undefined resamples are left out."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))
