"""Distillation methods. One published method is one file."""

from limbeck.methods.base import FeatureMethod, LogitMethod, Method, Needs, Setup, methods, register

__all__ = ["FeatureMethod", "LogitMethod", "Method", "Needs", "Setup", "methods", "register"]
