"""Is a rate worse than allowed? A test that may be looked at after every request without raising more false alarms.

The confidence sequence of a Bernoulli rate by the method of mixtures: for a prior over the alternatives the
likelihood ratio against the true rate is a martingale, and by Ville's inequality the set of rates whose ratio stays
below 1/alpha covers the true one at all times together with probability 1 - alpha. It depends on two counts only, so
that the evidence is what was recorded, whoever looks and however often.

Robbins, Statistical methods related to the law of the iterated logarithm (1970); Howard, Ramdas, McAuliffe, Sekhon,
Time-uniform, nonparametric, nonasymptotic confidence sequences (2021). Two rates are compared by a sequence each, half
of the error rate spent on either (union bound).
"""

from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, lgamma, log
from typing import Literal

PRIORS = ((0.5, 50.0), (0.5, 0.5))
"""Beta priors of the alternatives, half each: faults are rare where all is well, and anything where it is not."""
STEPS = 40
"""Halvings of an interval: bounds are right to 1e-12."""

Finding = Literal["worse", "fine", "open"]


@dataclass(frozen=True)
class Rate:
    """So many events in so many independent trials."""

    events: int
    trials: int

    def __post_init__(self) -> None:
        assert 0 <= self.events <= self.trials, (self.events, self.trials)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Lower and upper bound of the true rate; both hold at every look together with probability 1 - alpha."""
        if not self.trials:
            return 0.0, 1.0
        seen = self.events / self.trials
        return self._edge(0.0, seen, alpha), self._edge(1.0, seen, alpha)

    def excludes(self, rate: float, alpha: float) -> bool:
        """Is this rate outside the bounds?"""
        misses = self.trials - self.events
        likelihood = _times_log(self.events, rate) + _times_log(misses, 1 - rate)
        return self._mixture - likelihood >= -log(alpha)

    @cached_property
    def _mixture(self) -> float:
        """Log of the likelihood, averaged over the priors."""
        misses = self.trials - self.events
        each = [_log_beta(a + self.events, b + misses) - _log_beta(a, b) for a, b in PRIORS]
        return max(each) + log(sum(exp(one - max(each)) for one in each) / len(each))

    def _edge(self, outside: float, inside: float, alpha: float) -> float:
        """The rate between these two where the evidence against it reaches 1/alpha; `outside` when nowhere."""
        if not self.excludes(outside, alpha):
            return outside
        for _ in range(STEPS):
            middle = (outside + inside) / 2
            outside, inside = (middle, inside) if self.excludes(middle, alpha) else (outside, middle)
        return outside


def compare(canary: Rate, stable: Rate | None, *, margin: float, false_alarm: float, miss: float) -> Finding:
    """Does the canary's rate exceed the stable lane's (without one: zero) by more than `margin`?

    `worse` is said of a canary that is not with probability at most `false_alarm`, `fine` of one that is with at most
    `miss`, however often the evidence is looked at while it grows.
    """
    share = 1.0 if stable is None else 0.5
    low, _ = canary.bounds(false_alarm * share)
    _, high = canary.bounds(miss * share)
    _, above = stable.bounds(false_alarm * share) if stable else (0.0, 0.0)
    below, _ = stable.bounds(miss * share) if stable else (0.0, 0.0)
    if low > above + margin:
        return "worse"
    return "fine" if high <= below + margin else "open"


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _times_log(count: int, rate: float) -> float:
    """`count * log(rate)`, where nothing of an impossible thing is nothing."""
    if not count:
        return 0.0
    return count * log(rate) if rate > exp(-700) else -inf
