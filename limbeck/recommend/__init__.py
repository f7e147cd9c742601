"""Proposes recipes for a pair of models and data, from recorded comparisons, and says what they do not cover."""

from limbeck.recommend.evidence import Evidence, Wish, evidence_for
from limbeck.recommend.proposals import Proposal, Recommendation, recommend

__all__ = ["Evidence", "Proposal", "Recommendation", "Wish", "evidence_for", "recommend"]
