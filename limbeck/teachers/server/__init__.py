"""A language model behind the OpenAI protocol, with the log-probabilities that distillation needs."""

from limbeck.teachers.server.http import TeacherServer, serve
from limbeck.teachers.server.scoring import Scorer

__all__ = ["Scorer", "TeacherServer", "serve"]
