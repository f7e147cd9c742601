"""Distillation methods. One published method is one file."""

from limbeck.methods.base import LogitMethod, Method, Needs, Setup, methods, register

__all__ = ["LogitMethod", "Method", "Needs", "Setup", "methods", "register"]
