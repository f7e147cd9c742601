"""What a trained student is worth: accuracy, fidelity to the teacher, calibration, cost, latency. One file each."""

from limbeck.evaluate.base import Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.plan import planned, with_options
from limbeck.evaluate.predictions import Predictions, predict
from limbeck.evaluate.runner import DEFAULT, evaluate, measures, of_teacher
from limbeck.evaluate.spread import Spread

__all__ = [
    "DEFAULT",
    "Measure",
    "Predictions",
    "Spread",
    "Subject",
    "evaluate",
    "evaluations",
    "measures",
    "of_teacher",
    "planned",
    "predict",
    "with_options",
]
