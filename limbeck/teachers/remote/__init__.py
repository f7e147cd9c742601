"""A teacher behind a server that speaks the OpenAI protocol: paid once, never lost."""

from limbeck.teachers.remote.client import Client, Endpoint
from limbeck.teachers.remote.completions import RemoteWriter, complete_prompts
from limbeck.teachers.remote.journal import Journal
from limbeck.teachers.remote.ledger import Ledger, Prices
from limbeck.teachers.remote.probe import Probe, probe
from limbeck.teachers.remote.provider import RemoteTeacher

__all__ = [
    "Client",
    "Endpoint",
    "Journal",
    "Ledger",
    "Prices",
    "Probe",
    "RemoteTeacher",
    "RemoteWriter",
    "complete_prompts",
    "probe",
]
