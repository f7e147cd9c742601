"""The doctor: what may go wrong in a long run, found before it, each with evidence and a fix."""

from limbeck.recipes.doctor.examination import examine, reads_other_tokens, refuse_other_tokens
from limbeck.recipes.doctor.finding import Finding, Severity, refuse
from limbeck.recipes.doctor.forecast import MemoryForecast, forecast_memory, step_seconds

__all__ = [
    "Finding",
    "MemoryForecast",
    "Severity",
    "examine",
    "forecast_memory",
    "reads_other_tokens",
    "refuse",
    "refuse_other_tokens",
    "step_seconds",
]
