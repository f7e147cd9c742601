from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import TapError
from limbeck.students.resnet import resnet8, resnet20
from limbeck.students.small_cnn import small_cnn
from limbeck.taps import Taps, resolve, untap


class Twice(nn.Module):
    """Runs one module twice, and can skip another."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.skipped = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x))


class Overwriting(nn.Module):
    """Normalises and activates in place."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))


class Keywords(nn.Module):
    """Calls its parts by keyword and returns records, as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Record()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(hidden=x)["logits"]


class Record(nn.Module):
    def forward(self, *, hidden: Tensor) -> dict[str, object]:
        return {"note": "no tensor", "logits": hidden + 1}


def _collect(taps: Taps, model: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, ...]]:
    taps.listen()
    model(inputs)
    return taps.collect()


def test_output_input_and_model_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    found = _collect(Taps(model, {"out": ["0"], "in": ["2@in"], "all": [".", ".@in"]}), model, x)
    assert torch.equal(found["out"][0], model[0](x))
    assert torch.equal(found["in"][0], model[1](model[0](x)))
    assert torch.equal(found["all"][0], model(x))
    assert found["all"][1] is x


def test_tapped_tensors_carry_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    _collect(Taps(model, {"out": ["0"]}), model, torch.randn(5, 4))["out"][0].sum().backward()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None


def test_wildcard_stands_for_one_component_in_order() -> None:
    model = resnet20(num_classes=10)
    assert resolve(model, "stages.*") == ["stages.0", "stages.1", "stages.2"]
    assert resolve(model, "stages.1.*.conv1@in") == [f"stages.1.{i}.conv1@in" for i in range(3)]
    found = _collect(Taps(model, {"all": ["stem", "stages.*"]}), model, torch.randn(1, 3, 32, 32))
    assert [t.shape[1] for t in found["all"]] == [16, 16, 32, 64]


def test_a_dot_in_a_path_is_a_dot() -> None:
    with pytest.raises(TapError, match="stagesx0"):
        resolve(resnet8(num_classes=10), "stagesx0")


@pytest.mark.parametrize(("wrong", "right"), [("stagse.1", "'stages.1'"), ("haed@in", "'head'"), ("stem.9", "'stem.")])
def test_no_match_lists_near_matches(wrong: str, right: str) -> None:
    with pytest.raises(TapError) as error:
        Taps(resnet8(num_classes=10), {"stages": [wrong]})
    assert wrong in str(error.value)
    assert "Did you mean" in str(error.value)
    assert right in str(error.value)


def test_a_wildcard_that_matches_nothing_is_refused() -> None:
    with pytest.raises(TapError, match=r"layer\.\*"):
        resolve(nn.Linear(2, 2), "layer.*")


def test_a_module_that_runs_twice_is_refused() -> None:
    model = Twice()
    taps = Taps(model, {"a": ["shared"]})
    with pytest.raises(TapError, match="'shared' ran 2 times"):
        _collect(taps, model, torch.randn(2, 4))


def test_a_module_that_does_not_run_is_refused_and_the_taps_stay_usable() -> None:
    model = Twice()
    taps = Taps(model, {"a": ["skipped"]})
    for _ in range(2):
        with pytest.raises(TapError, match="'skipped' ran 0 times"):
            _collect(taps, model, torch.randn(2, 4))


def test_an_overwritten_tensor_is_refused() -> None:
    model = Overwriting()
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode, pytest.raises(TapError, match=r"'norm' saw was overwritten .*`inplace`"):
            _collect(Taps(model, {"preacts": ["norm"]}), model, torch.randn(2, 3, 4, 4))
    # After the in-place module, or with the module mended, there is nothing wrong.
    _collect(Taps(model, {"stages": ["act"]}), model, torch.randn(2, 3, 4, 4))
    model = Overwriting(inplace=False)
    found = _collect(Taps(model, {"preacts": ["norm"]}), model, torch.randn(2, 3, 4, 4))
    assert bool((found["preacts"][0] < 0).any())


def test_inference_mode_is_allowed() -> None:
    model = resnet8(num_classes=10)
    with torch.inference_mode():
        found = _collect(Taps(model, {"stages": ["stages.0"]}), model, torch.randn(1, 3, 8, 8))
    assert found["stages"][0].shape == (1, 16, 8, 8)


def test_keyword_inputs_and_records() -> None:
    model = Keywords()
    x = torch.randn(2, 3)
    found = _collect(Taps(model, {"a": ["part@in", "part"]}), model, x)
    assert found["a"][0] is x
    assert torch.equal(found["a"][1], x + 1)


def test_a_module_without_tensors_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    model = nn.Sequential(Silent())
    with pytest.raises(TapError, match="'0' gives str"):
        _collect(Taps(model, {"a": ["0"]}), model, torch.randn(1))


@pytest.mark.parametrize(
    "compiled", [lambda m: torch.compile(m, backend="eager"), lambda m: m.compile(backend="eager") or m]
)
def test_a_compiled_model_is_refused(compiled: object) -> None:
    model = compiled(small_cnn(num_classes=10))  # type: ignore[operator]
    with pytest.raises(TapError, match="compiled already"):
        Taps(model, {"stages": ["stages.0"]})


def test_a_compiled_part_is_refused() -> None:
    model = small_cnn(num_classes=10)
    model.stages = torch.compile(model.stages, backend="eager")
    with pytest.raises(TapError, match="'stages' is compiled already"):
        Taps(model, {"pooled": ["head@in"]})


def test_taps_set_before_compiling_fire_and_see_the_same() -> None:
    model = small_cnn(num_classes=10).eval()
    taps = Taps(model, {"stages": ["stages.*"], "preacts": ["stages.2.2@in"], "pooled": ["head@in"]})
    x = torch.randn(2, 3, 16, 16)
    plain = _collect(taps, model, x)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        found = _collect(taps, compiled, x)
        for group, tensors in plain.items():
            for ours, theirs in zip(found[group], tensors):
                torch.testing.assert_close(ours, theirs)
        compiled(x)  # an evaluation in between leaves nothing behind


def test_two_tap_sets_on_two_models_side_by_side() -> None:
    teacher, student = resnet20(num_classes=10).eval(), resnet8(num_classes=10).eval()
    first, second = Taps(teacher, {"stages": ["stages.*"]}), Taps(student, {"stages": ["stages.*"]})
    x = torch.randn(2, 3, 16, 16)
    alone = [_collect(taps, model, x)["stages"] for taps, model in ((first, teacher), (second, student))]
    first.listen()
    second.listen()
    student(x)
    teacher(x)
    for taps, expected in zip((first, second), alone):
        found = taps.collect()["stages"]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_instances_of_one_class_do_not_share_taps() -> None:
    tapped, plain = resnet8(num_classes=10), resnet8(num_classes=10)
    taps = Taps(tapped, {"stages": ["stages.0"]})
    taps.listen()
    plain(torch.randn(2, 3, 8, 8))
    with pytest.raises(TapError, match="ran 0 times"):
        taps.collect()


def test_two_tap_sets_on_one_model() -> None:
    model = resnet8(num_classes=10).eval()
    first, second = Taps(model, {"a": ["stages.0"]}), Taps(model, {"b": ["stages.0", "head@in"]})
    first.listen()
    second.listen()
    model(torch.randn(1, 3, 8, 8))
    assert first.collect()["a"][0] is second.collect()["b"][0]


def test_a_closed_tap_set_leaves_the_model_clean() -> None:
    model = resnet8(num_classes=10)
    Taps(model, {"a": ["stages.0", "head@in"]}).close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_can_be_freed_from_its_models_taps() -> None:
    import copy

    model = resnet8(num_classes=10)
    taps = Taps(model, {"a": ["stages.0"], "b": ["head@in"]})
    twin = copy.deepcopy(model)
    untap(twin)
    taps.listen()
    x = torch.randn(2, 3, 8, 8)
    twin(x)
    model(x)
    assert len(taps.collect()["a"]) == 1
