"""The doctor: what may go wrong in a long run, found before it, each with evidence and a fix."""

from limbeck.recipes.doctor.examination import examine, reads_other_tokens, refuse_other_tokens
from limbeck.recipes.doctor.finding import Finding, Severity, refuse
from limbeck.recipes.doctor.forecast import MemoryForecast, StepTime, forecast_memory, step_time

__all__ = [
    "Finding",
    "MemoryForecast",
    "Severity",
    "StepTime",
    "examine",
    "forecast_memory",
    "reads_other_tokens",
    "refuse",
    "refuse_other_tokens",
    "step_time",
]
