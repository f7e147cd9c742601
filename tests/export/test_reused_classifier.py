"""A student that keeps the teacher's classifier (SimKD) is deployed like any other."""

from __future__ import annotations

from pathlib import Path

from limbeck.export import export_onnx
from methods.workbench import bench


def test_it_is_exported_with_its_projector_and_classifier(tmp_path: Path) -> None:
    built = bench("simkd", batch_norm=True)
    built.train(2)
    finished = built.method.finish(built.learners["student"]).float().eval()
    result = export_onnx(finished, built.batch()["inputs"].float(), tmp_path / "student.onnx")
    assert result.max_abs_error is not None
    assert result.max_abs_error < 1e-4
