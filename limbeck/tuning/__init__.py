"""A small search over temperature, weights of terms and taps of a recipe, judged on held-out training data."""

from limbeck.tuning.search import Tuned, tune
from limbeck.tuning.space import Choice, Range, space_of

__all__ = ["Choice", "Range", "Tuned", "space_of", "tune"]
