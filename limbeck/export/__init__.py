"""The student as a file for others to use: ONNX, and weights with a model card."""

from limbeck.export.card import ModelCard
from limbeck.export.onnx import ExportResult, export_onnx

__all__ = ["ExportResult", "ModelCard", "export_onnx"]
