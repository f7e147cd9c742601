"""The teacher-hacking lab: an oracle makes the truth measurable, so that a student can be seen to leave it.

Reference: "On teacher hacking in language model distillation", arXiv 2502.02671.
"""

from limbeck.recipes.hacking.lab import FinishedLab, SourceCurves, run_lab
from limbeck.recipes.hacking.spec import Lab, holds_lab

__all__ = ["FinishedLab", "Lab", "SourceCurves", "holds_lab", "run_lab"]
