from __future__ import annotations

import pytest
import torch

from limbeck import torchvision_compat


def test_libraries_that_probe_for_torchvision_import() -> None:
    assert torchvision_compat.ensure_torchvision()
    import timm  # noqa: F401
    import torchmetrics  # noqa: F401
    from torchvision.models import resnet18
    from transformers import ViTForImageClassification  # noqa: F401

    assert resnet18(num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forgets that torchvision was made importable, and records the repairs."""
    repairs: list[str] = []
    monkeypatch.setattr(torchvision_compat, "_forget_partial_import", lambda: repairs.append("forget"))
    monkeypatch.setattr(torchvision_compat, "_declare_operators", lambda: repairs.append("declare"))
    torchvision_compat.ensure_torchvision.cache_clear()
    return repairs


def _importing(monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception | None]) -> None:
    def import_module(name: str) -> None:
        assert name == "torchvision"
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(torchvision_compat.importlib, "import_module", import_module)


def test_a_healthy_torchvision_is_left_alone(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _importing(monkeypatch, [None])
    assert torchvision_compat.ensure_torchvision()
    assert fresh == []


def test_an_absent_torchvision_is_no_error(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _importing(monkeypatch, [ModuleNotFoundError("No module named 'torchvision'")])
    assert not torchvision_compat.ensure_torchvision()
    assert fresh == []


def test_missing_operators_are_declared_before_the_second_try(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _importing(monkeypatch, [RuntimeError("operator torchvision::nms does not exist"), None])
    assert torchvision_compat.ensure_torchvision()
    assert fresh == ["forget", "declare"]


def test_other_failures_are_not_hidden(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _importing(monkeypatch, [RuntimeError("something else")])
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_compat.ensure_torchvision()
    assert fresh == []
