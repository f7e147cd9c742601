"""What single feature methods promise beyond the properties that all methods share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.anatomy import Anatomy, anatomy_of, head_of
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.activation_boundaries import negative_part_mean
from limbeck.methods.base import Setup, build_method
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Batch, Signals, as_term
from limbeck.taps import Taps
from methods.networks import CLASSES, large_teacher, small_student
from methods.workbench import bench, make_batch

MATCHES_STAGES = {"at": "stages", "vid": "stages", "nst": "stages", "ofd": "preacts", "reviewkd": "preacts"}


def _maps(*channels: int, size: int = 4) -> tuple[Tensor, ...]:
    return tuple(torch.randn(4, c, size, size) for c in channels)


def _setup(student: dict[str, Any], teacher: dict[str, Any], /, **models: nn.Module) -> Setup:
    logits = torch.zeros(4, CLASSES)
    signals = {"student": Signals(logits, student), "teacher": Signals(logits, teacher)}
    return Setup(signals=signals, models=models, taps={"student": {"stages": ["a", "b"]}, "teacher": {}})


@pytest.mark.parametrize("name", MATCHES_STAGES)
@pytest.mark.parametrize("counts", [(2, 3), (3, 2)])
def test_different_numbers_of_stages_are_refused_with_the_taps_to_set(name: str, counts: tuple[int, int]) -> None:
    group, pooled = MATCHES_STAGES[name], {"pooled": (torch.zeros(4, 6),)}
    ours, theirs = (_maps(*[4] * count) for count in counts)
    setup = _setup({"stages": ours, "preacts": ours, **pooled}, {group: theirs, **pooled}, teacher=large_teacher())
    longer = "student" if counts[0] > counts[1] else "teacher"
    with pytest.raises(NeedsError, match=rf"name 2 taps of the {longer}, `roles: {{{longer}: {{taps: {{"):
        build_method(name).build(setup)


@pytest.mark.parametrize("name", ["at", "vid", "nst", "fitnet", "ofd", "reviewkd", "simkd", "fsp"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_tokens_are_refused_as_such(name: str, role: str) -> None:
    tokens = tuple(torch.randn(4, 9, 6) for _ in range(2))
    features: dict[str, Any] = {}
    for side in ("student", "teacher"):
        maps = tokens if side == role else _maps(6, 6)
        features[side] = {"stem": maps[:1], "stages": maps, "preacts": maps, "pooled": (torch.zeros(4, 6),)}
    with pytest.raises(NeedsError, match=rf"role '{role}' gives tokens \[batch, tokens, width\] \(4, 9, 6\)"):
        build_method(name).build(_setup(features["student"], features["teacher"], teacher=large_teacher()))


class TestFitNet:
    @pytest.mark.parametrize(("config", "word"), [({"hint_stage": 3}, "hint_stage"), ({"guided_by": 4}, "guided_by")])
    def test_a_stage_that_is_not_there_is_refused(self, config: dict[str, int], word: str) -> None:
        with pytest.raises(NeedsError, match=f"{word} is"):
            build_method("fitnet", **config).build(_setup({"stages": _maps(4, 4)}, {"stages": _maps(6, 6, 6)}))

    def test_sizes_without_a_rule_are_pooled(self) -> None:
        student, teacher = {"stages": _maps(4, size=2)}, {"stages": _maps(6, size=8)}
        method = build_method("fitnet", hint_stage=1)
        setup = _setup(student, teacher)
        method.build(setup)
        batch = Batch(index=torch.arange(4), labels=torch.zeros(4, dtype=torch.long))
        hint = as_term(method(batch, **setup.signals)["hint"]).values
        assert hint.shape == (4,)


class TestVID:
    def test_variances_start_where_asked_and_train(self) -> None:
        built = bench("vid", {"init_variance": 2.0, "min_variance": 0.5})
        stage = built.method.get_submodule("stages.1")
        torch.testing.assert_close(stage.variance(), torch.full((8,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
        built.train(2)
        assert stage.variance().detach().std() > 0

    @pytest.mark.parametrize("variance", [1e-3, 800.0, 1e6])
    def test_extreme_variances_are_exact(self, variance: float) -> None:
        built = bench("vid", {"init_variance": variance, "min_variance": 1e-5})
        value = built.method.get_submodule("stages.0").variance()
        torch.testing.assert_close(value, torch.full_like(value, variance), rtol=1e-5, atol=0)

    def test_a_start_below_the_minimum_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"init_variance.*min_variance"):
            build_method("vid", init_variance=0.1, min_variance=0.2)


class TestOFD:
    def test_measured_margins_are_the_mean_of_negative_responses(self) -> None:
        built = bench("ofd", {"margins": "measured"})
        batches = [built.signals(built.bench_batch(step))["teacher"].features["preacts"] for step in range(4)]
        for stage, margin in enumerate(built.method.margins()):
            responses = torch.cat([maps[stage] for maps in batches]).transpose(0, 1).flatten(1)
            expected = torch.stack([row[row < 0].mean() for row in responses])
            torch.testing.assert_close(margin, expected)

    def test_margins_survive_the_state_dict(self) -> None:
        built = bench("ofd", {"margins": "measured"})
        assert {f"margin_{i}" for i in range(3)} <= set(built.method.state_dict())

    def test_the_teacher_uses_the_statistics_of_the_batch(self) -> None:
        built = bench("ofd", batch_norm=True)
        maps = built.signals(built.batch())["teacher"].features["preacts"][0]
        norm = built.frozen["teacher"].model.get_submodule("stages.0.1")
        torch.testing.assert_close(maps.mean((0, 2, 3)), norm.bias)
        assert not norm.running_mean.any()

    @pytest.mark.parametrize(("change", "words"), [
        ({}, "there is none; set `margins: measured`"),
        ({"anatomy": Anatomy(norms=("stages.0.1",))}, "names 1"),
        ({"anatomy": Anatomy(norms=("stages.0.2", "stages.1.2"))}, "'stages.0.2' of the teacher has no scale"),
    ])  # fmt: skip
    def test_a_teacher_without_normalisations_is_refused(self, change: dict[str, Any], words: str) -> None:
        models: dict[str, nn.Module] = {}
        if change:
            models["teacher"] = large_teacher()
            models["teacher"].anatomy = change["anatomy"]
        setup = _setup({"preacts": _maps(4, 4)}, {"preacts": _maps(6, 8)}, **models)
        with pytest.raises(NeedsError, match=words):
            build_method("ofd").build(setup)
        build_method("ofd", margins="measured").build(setup)

    def test_margins_follow_the_taps(self) -> None:
        """A recipe may leave out a stage, and its normalisation goes with it."""
        teacher = large_teacher()
        setup = _setup({"preacts": _maps(4, 4)}, {"preacts": _maps(6, 10)}, teacher=teacher)
        taps = {"student": {}, "teacher": {"preacts": ["stages.0.1", "stages.2.1"]}}
        method = build_method("ofd")
        method.build(replace(setup, taps=taps))
        last = teacher.get_submodule("stages.2.1")
        torch.testing.assert_close(method.margins()[1], negative_part_mean(last.bias.detach(), last.weight.detach()))


class TestReviewKD:
    def test_the_weight_warms_up(self) -> None:
        weight = build_method("reviewkd", weight=8.0, warmup_epochs=4).weights["review"]
        assert [weight_at(weight, Progress(epoch, 1, 240)) for epoch in (0, 1, 3, 100)] == [2.0, 4.0, 8.0, 8.0]

    def test_the_students_maps_before_the_activation_are_read_where_asked(self) -> None:
        built = bench("reviewkd", {"student_preact": True})
        assert built.method.needs.groups("student") == ["pooled", "preacts"]

    def test_predictions_have_the_teachers_shapes(self) -> None:
        built = bench("reviewkd")
        signals = built.signals(built.batch())
        shapes = [tuple(p.shape) for p in built.method.review(signals["student"])]
        teacher = signals["teacher"].features
        assert shapes == [*(tuple(m.shape) for m in teacher["preacts"]), (*teacher["pooled"][0].shape, 1, 1)]


class TestFSP:
    def test_flow_first_then_labels(self) -> None:
        weights = build_method("fsp", initialisation=0.25).weights
        moments = [Progress(step, 1, 4) for step in range(4)]
        over_time = [(weight_at(weights["ce"], moment), weight_at(weights["fsp"], moment)) for moment in moments]
        assert over_time == [(0.0, 50.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)]

    def test_different_channels_are_refused_with_other_methods(self) -> None:
        features = [{"stem": _maps(4), "stages": _maps(4, width)} for width in (4, 6)]
        with pytest.raises(NeedsError, match=r"not 4/4, 4/4, 4/6; use a teacher.*vid, reviewkd, ofd"):
            build_method("fsp").build(_setup(*features))

    def test_one_tap_has_no_flow(self) -> None:
        with pytest.raises(NeedsError, match="at least two"):
            build_method("fsp", stem=False).build(_setup({"stages": _maps(4)}, {"stages": _maps(4)}))

    def test_the_stem_is_needed_only_where_it_counts(self) -> None:
        assert build_method("fsp", stem=False).needs.groups("teacher") == ["stages"]


class TestSimKD:
    @pytest.fixture
    def trained(self) -> Any:
        built = bench("simkd", batch_norm=True)
        built.train(2)
        return built

    def test_the_deployed_student_computes_what_training_saw(self, trained: Any) -> None:
        """In eval mode: the student's map, projected, averaged, read by the teacher's classifier."""
        student, method = trained.learners["student"].eval(), trained.method.eval()
        batch = trained.batch()
        features = trained.signals(batch)["student"].feature("stages")
        classifier = method.get_submodule("classifier")
        with torch.no_grad():
            head = head_of(trained.frozen["teacher"].model)
            expected = head(classifier.projector(features).mean((2, 3)))
            torch.testing.assert_close(method.finish(student)(batch["inputs"]), expected)

    def test_the_teachers_classifier_is_copied_and_frozen(self, trained: Any) -> None:
        head = head_of(trained.frozen["teacher"].model)
        copied = trained.method.get_submodule("classifier.head")
        assert torch.equal(copied.weight, head.weight)
        assert copied.weight.data_ptr() != head.weight.data_ptr()
        assert not copied.weight.requires_grad

    def test_the_own_classifier_is_left_out_and_the_anatomy_fits(self, trained: Any) -> None:
        finished = trained.method.finish(trained.learners["student"])
        assert not any(name.startswith("backbone.head") for name in finished.state_dict())
        taps = Taps(finished, anatomy_of(finished).groups())
        taps.listen()
        logits = finished.eval()(trained.batch()["inputs"])
        pooled = taps.collect()["pooled"][0]
        torch.testing.assert_close(head_of(finished)(pooled), logits)

    def test_its_weights_can_be_stored_and_loaded(self, trained: Any, tmp_path: Any) -> None:
        from safetensors.torch import load_file, save_file

        finished = trained.method.finish(trained.learners["student"]).eval()
        save_file(finished.state_dict(), tmp_path / "student.safetensors")
        other = bench("simkd", init_seed=9, batch_norm=True)
        loaded = other.method.finish(other.learners["student"]).eval()
        loaded.load_state_dict(load_file(tmp_path / "student.safetensors"))
        inputs = trained.batch()["inputs"]
        assert torch.equal(loaded(inputs), finished(inputs))

    def test_a_map_at_the_input_of_a_module_can_be_tapped(self) -> None:
        built = bench("simkd")
        built.method.tap = "stages.2.2@in"
        finished = built.method.finish(built.learners["student"])
        caught: list[Tensor] = []
        finished.backbone.get_submodule("stages.2.1").register_forward_hook(lambda _, __, output: caught.append(output))
        logits = finished(built.batch()["inputs"])
        torch.testing.assert_close(finished.classifier(caught[0]), logits)

    @pytest.mark.parametrize(("name", "shown"), [("simkd", "SimKD"), ("kd3", "KD3")])
    def test_a_cached_teacher_is_refused(self, name: str, shown: str) -> None:
        maps = {"stages": _maps(4), "pooled": (torch.zeros(4, 4),)}
        with pytest.raises(NeedsError, match=f"{shown} keeps .* live model, not a cache"):
            build_method(name).build(_setup(maps, maps, student=small_student()))

    def test_a_teacher_whose_classifier_reads_something_else_is_refused(self) -> None:
        (theirs,) = _maps(10)
        for pooled in (theirs.mean((2, 3)) + 1, torch.zeros(4, 7)):
            setup = _setup({"stages": _maps(4)}, {"stages": (theirs,), "pooled": (pooled,)}, teacher=large_teacher())
            with pytest.raises(NeedsError, match="right before the global pooling"):
                build_method("simkd").build(setup)

    def test_a_classifier_that_is_not_linear_is_refused(self) -> None:
        teacher = large_teacher()
        teacher.anatomy = replace(teacher.anatomy, head="stages.0")
        (theirs,) = _maps(10)
        features = {"stages": (theirs,), "pooled": (theirs.mean((2, 3)),)}
        with pytest.raises(NeedsError, match="linear classifier to reuse, but the teacher's is Sequential"):
            build_method("simkd").build(_setup({"stages": _maps(4)}, features, teacher=teacher))

    def test_finishing_before_building_is_refused(self) -> None:
        with pytest.raises(NeedsError, match="call build"):
            build_method("simkd").finish(small_student())


def test_kd3_weighs_by_the_teachers_own_logits_where_its_map_is_pooled() -> None:
    teacher, rows = large_teacher(), torch.zeros(4, 6)
    ours, theirs = torch.randn(4, 6, 3, 3), torch.randn(4, 10, 5, 5)
    pooled = theirs.mean((2, 3))
    setup = _setup(
        {"stages": (ours,), "pooled": (rows,)}, {"stages": (theirs,), "pooled": (pooled,)},
        student=small_student(), teacher=teacher,
    )  # fmt: skip
    method = build_method("kd3")
    method.build(setup)
    method.eval()
    signals = {role: replace(said, views={"mixed": said}) for role, said in setup.signals.items()}
    batch = Batch(index=torch.arange(4), labels=torch.zeros(4, dtype=torch.long))
    found = as_term(method(batch, **signals)["feature"]).values
    classifier, head = method.get_submodule("classifier"), head_of(teacher)
    with torch.no_grad():
        projected = classifier.projector(ours)
        gap = head(projected.mean((2, 3))) - head(pooled)
        apart = (projected - nn.functional.adaptive_avg_pool2d(theirs, 3)).square().mean((1, 2, 3))
        torch.testing.assert_close(found, torch.sigmoid(gap.norm(dim=1)) * apart)


def test_the_batch_of_the_workbench_is_the_same_every_time() -> None:
    assert torch.equal(make_batch()["inputs"], make_batch()["inputs"])
