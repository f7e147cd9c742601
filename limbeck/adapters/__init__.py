"""Methods in other people's training loops: Accelerate, the Trainer of transformers, Lightning, or a loop by hand."""

from limbeck.adapters.distillation import Distillation, LossAndTerms

__all__ = ["Distillation", "LossAndTerms"]
