from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import relu
from zoo_families import FAMILIES, build

from limbeck.anatomy import anatomy_of, head_of
from limbeck.errors import TapError
from limbeck.students.shufflenet import UnitV2
from limbeck.students.vgg import vgg8
from limbeck.students.vit import vit
from limbeck.taps import Taps


def _tapped(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
    taps = Taps(model, anatomy_of(model).groups())
    taps.listen()
    logits = model(inputs)
    features = taps.collect()
    taps.close()
    return logits, features


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet20", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("resnet8x4", [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        ("resnet50", [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]),
        ("wrn_40_2", [(32, 32, 32), (64, 16, 16), (128, 8, 8)]),
        ("vgg13", [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]),
        ("mobilenet_v2", [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)]),
        ("shufflenet_v1", [(240, 16, 16), (480, 8, 8), (960, 4, 4)]),
        ("shufflenet_v2", [(116, 16, 16), (232, 8, 8), (464, 4, 4)]),
        ("vit_tiny", [(192, 8, 8)] * 3),
        ("mlp", [(256, 1, 1)] * 2),
        ("small_cnn", [(8, 16, 16), (16, 8, 8), (32, 4, 4)]),
    ],
)
def test_stage_maps_have_the_shapes_of_the_literature(name: str, shapes: list[tuple[int, ...]]) -> None:
    with torch.no_grad():
        _, features = _tapped(build(name), torch.randn(1, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in features["stages"]] == shapes


@pytest.mark.parametrize(
    ("name", "stem"), [("resnet20", (16, 32)), ("wrn_16_1", (16, 32)), ("vgg8", (64, 32)), ("mobilenet_v2", (16, 16))]
)
def test_stem_map(name: str, stem: tuple[int, int]) -> None:
    with torch.no_grad():
        _, features = _tapped(build(name), torch.randn(1, 3, 32, 32))
    assert features["stem"][0].shape == (1, stem[0], stem[1], stem[1])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "name", ["resnet8x4", "resnet50", "vgg8", "shufflenet_v1", "shufflenet_v2", "mlp", "small_cnn"]
)
def test_activation_of_the_preactivation_is_the_stage_map(name: str, train: bool) -> None:
    model = build(name).train(train)
    with torch.no_grad():
        _, features = _tapped(model, torch.randn(4, 3, 32, 32))
    for stage, preact in zip(features["stages"], features["preacts"]):
        assert bool((preact < 0).any()), "a pre-activation map should have negative values"
        torch.testing.assert_close(relu(preact), stage, rtol=0, atol=0)


def test_wide_resnet_preactivation_is_the_normalised_stage_map() -> None:
    # No activation ends a stage of a pre-activation network: the next normalisation reads its map, then a ReLU.
    model = build("wrn_16_2")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        _, features = _tapped(model, torch.randn(2, 3, 32, 32))
        for stage, preact, norm in zip(features["stages"], features["preacts"], anatomy_of(model).norms):
            assert bool((stage < 0).any())
            torch.testing.assert_close(model.get_submodule(norm)(stage), preact, rtol=0, atol=0)
        pooled = relu(features["preacts"][-1]).mean((2, 3))
        torch.testing.assert_close(pooled, features["pooled"][0])


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_micro"])
def test_linear_stage_ends_are_their_own_preactivations(name: str) -> None:
    with torch.no_grad():
        _, features = _tapped(build(name), torch.randn(2, 3, 32, 32))
    for stage, preact in zip(features["stages"], features["preacts"]):
        assert bool((stage < 0).any())
        assert torch.equal(stage, preact)


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_normalisations_as_wide_as_the_preactivations(name: str) -> None:
    model = build(name)
    anatomy = anatomy_of(model)
    with torch.no_grad():
        _, features = _tapped(model, torch.randn(1, 3, 32, 32))
    if name in ("shufflenet_v2", "vit_micro", "mlp"):
        assert anatomy.norms == ()
        return
    norms = [model.get_submodule(path) for path in anatomy.norms]
    assert [norm.num_features for norm in norms] == [preact.shape[1] for preact in features["preacts"]]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_reads_the_pooled_features(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        logits, features = _tapped(model, torch.randn(2, 3, 32, 32))
        torch.testing.assert_close(head_of(model)(features["pooled"][0]), logits, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_and_flow_through_every_tap(name: str) -> None:
    model = build(name).train()
    logits, features = _tapped(model, torch.randn(4, 3, 32, 32))
    tapped = [t for tensors in features.values() for t in tensors]
    (logits.square().mean() + sum(t.square().mean() for t in tapped)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    for tensor in tapped:
        assert tensor.grad_fn is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_only_activations_after_a_tap_do_not_work_in_place(name: str) -> None:
    model = build(name)
    careful = {n for n, m in model.named_modules() if isinstance(m, nn.ReLU) and not m.inplace}
    if name == "mlp":
        assert careful == {"stages.0.act", "stages.1.act"}
    else:
        assert careful == {path.removesuffix("@in") for path in anatomy_of(model).preacts if path.endswith("@in")}


def test_a_tap_elsewhere_that_would_be_overwritten_is_refused() -> None:
    model = build("resnet8")
    taps = Taps(model, {"inside": ["stages.0.0.bn1"]})
    taps.listen()
    model(torch.randn(1, 3, 8, 8))
    with pytest.raises(TapError, match=r"stages\.0\.0\.bn1"):
        taps.collect()


def test_shuffle_unit_equals_the_papers_activation_of_one_half() -> None:
    unit = UnitV2(8, 8, 1)
    paper = copy.deepcopy(unit)
    x = torch.randn(3, 8, 5, 5)
    given = [x.clone().requires_grad_() for _ in range(2)]
    # What enters a unit that splits is the output of a ReLU.
    ours = unit(relu(given[0]))
    left, right = relu(given[1]).chunk(2, 1)
    halves = torch.stack([left, relu(paper.convolved(right))], 2)
    theirs = halves.flatten(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)


def test_transformer_maps_are_tokens_at_their_places() -> None:
    model = vit(num_classes=4, in_channels=1, image_size=(8, 12), patch_size=4, dim=6, depth=3, heads=2)
    caught = []
    model.stages[0].register_forward_hook(lambda _, __, tokens: caught.append(tokens))
    _, features = _tapped(model, torch.randn(2, 1, 8, 12))
    stage = features["stages"][0]
    assert stage.shape == (2, 6, 2, 3)
    for row in range(2):
        for column in range(3):
            assert torch.equal(stage[:, :, row, column], caught[0][:, row * 3 + column])


def test_vgg_pools_once_more_from_64_pixels() -> None:
    with torch.no_grad():
        _, features = _tapped(vgg8(num_classes=5, image_size=(64, 64)).eval(), torch.randn(1, 3, 64, 64))
    assert [f.shape[-1] for f in features["stages"]] == [32, 16, 8, 4]


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_group_is_there_on_grey_images(name: str, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        _, features = _tapped(build(name, shape), torch.randn(2, *shape))
    assert len(features["stages"]) == len(features["preacts"])
    for stage, preact in zip(features["stages"], features["preacts"]):
        assert stage.dim() == 4
        assert stage.shape == preact.shape
    assert features["pooled"][0].dim() == 2
