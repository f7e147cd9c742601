"""The student as files for others to use: weights with a model card, and ONNX."""

from limbeck.export.card import ModelCard, save_student
from limbeck.export.onnx import ExportResult, export_onnx

__all__ = ["ExportResult", "ModelCard", "export_onnx", "save_student"]
