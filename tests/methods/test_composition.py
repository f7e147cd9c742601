"""Methods side by side: every pair trains, or is refused at build with the reason."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import LimbeckError, NeedsError, RecipeError
from limbeck.methods.base import LogitMethod, Method, methods
from limbeck.methods.combined import Combined
from limbeck.recipes.load import load_recipe
from limbeck.recipes.method_section import as_method, make_method
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Signals, as_term
from limbeck.tasks.classification import Classification
from limbeck.teachers.cache import CachedTeacher, write_cache
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.live import FrozenTeacher
from limbeck.transforms import build_transform
from methods.networks import CHANNELS, CLASSES, SIZE, Classifier, large_teacher, small_student

STEPS, ROWS = 10, 4


class Losses(Reporter):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step_done(self, progress: Progress, loss: float) -> None:
        self.values.append(loss)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.rand(STEPS * ROWS, CHANNELS, SIZE, SIZE, generator=generator)
    return inputs, torch.arange(STEPS * ROWS) % CLASSES


def loader(views: Sequence[str] = (), *, shuffle: bool = True) -> Loader:
    return Loader(
        as_source(data()), batch_size=ROWS, shuffle=shuffle, views={view: [{"name": "flip"}] for view in views}
    )


def models_of(method: Method) -> dict[str, Role]:
    """A student for every learner and a larger network for every other role."""
    return {
        role: Role(model=small_student(seed=number) if role in method.learners else teacher(method))
        for number, role in enumerate(method.roles(), 1)
    }


def teacher(method: Method, seed: int = 20) -> Classifier:
    return large_teacher(seed, batch_norm=True, same_channels=method.same_channels)


def stage_of(
    method: Method,
    weights: Mapping[str, Any],
    *,
    roles: Mapping[str, Role] | None = None,
    transforms: Sequence[Any] = (),
    reporter: Reporter | None = None,
    **train: Any,
) -> Stage:
    batches = loader(method.needs.views)
    return Stage(
        method=method,
        roles=models_of(method) if roles is None else roles,
        task=Classification(),
        loader=batches,
        settings=TrainSettings(epochs=1, batch_size=ROWS, lr=1e-4, **train),
        weights=weights,
        transforms=transforms,
        labels=batches.source.labels(),
        num_classes=CLASSES,
        reporter=reporter,
    )


def trained(stage: Stage, seen: Losses) -> None:
    """Runs a stage; afterwards it took its steps with finite losses, and the student has moved."""
    student = stage.learners["student"]
    before = [p.detach().clone() for p in student.parameters()]
    stage.run()
    assert len(seen.values) == STEPS
    assert all(map(math.isfinite, seen.values))
    assert any(not torch.equal(b, p) for b, p in zip(before, student.parameters()))


def built_or_refused(
    entries: list[Any], seen: Losses, *, teacher: Callable[[Loader], Role] | None = None, mixup: bool = False
) -> tuple[Stage | None, str]:
    """Returns a stage, or why it was refused; any other error is a defect."""
    try:
        method, weights = make_method({"methods": entries})
        roles = models_of(method)
        if teacher is not None:
            roles["teacher"] = teacher(loader(method.needs.views))
        transforms = [build_transform("mixup", seed=0, num_classes=CLASSES)] if mixup else []
        return stage_of(method, weights, roles=roles, transforms=transforms, reporter=seen), ""
    except LimbeckError as error:
        return None, str(error)


@pytest.mark.parametrize("first", methods)
def test_every_pair_of_methods_trains_or_is_refused_with_the_reason(first: str) -> None:
    names = list(methods)
    for second in names[names.index(first) :]:
        seen = Losses()
        stage, refusal = built_or_refused([first, second], seen)
        if stage is None:
            assert len(refusal) > 40, f"{first} + {second}: {refusal}"
        else:
            trained(stage, seen)


def test_few_pairs_are_refused() -> None:
    refused = []
    plain = [
        "none",
        "label_smoothing",
        "kd",
        "dkd",
        "dist",
        "at",
        "rkd",
        "sp",
        "cc",
        "crd",
        "pkt",
        "vid",
        "fitnet",
        "nst",
    ]
    for pair in itertools.combinations(plain, 2):
        try:
            stage_of(*make_method({"methods": list(pair)}))
        except LimbeckError:
            refused.append(pair)
    assert refused == []


LOGIT_METHODS = [name for name in methods if issubclass(methods[name].part, LogitMethod)]


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A live teacher, a cache of what it says, and two teachers at once."""
    live, other = large_teacher(20, batch_norm=True), large_teacher(21, batch_norm=True)
    frozen = FrozenTeacher("teacher", live, Classification())
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder, loader=loader(shuffle=False), teacher=frozen, codec="full")
    ensemble = Ensemble([frozen, FrozenTeacher("teacher", other, Classification())])
    return {"live": live, "cached": folder, "ensemble": ensemble}


@pytest.mark.parametrize("name", LOGIT_METHODS)
@pytest.mark.parametrize("source", ["live", "cached", "ensemble"])
def test_logit_methods_with_standardisation_mixup_teachers_and_features(
    name: str, source: str, providers: dict[str, Any]
) -> None:
    for standardised, mixed, beside in itertools.product((False, True), repeat=3):
        entry = {"name": name, **({"logit_transform": "standardize"} if standardised else {})}
        seen = Losses()
        stage, refusal = built_or_refused(
            [entry, "rkd"] if beside else [entry],
            seen,
            teacher=lambda batches: role_of(source, providers, batches),
            mixup=mixed,
        )
        if stage is not None:
            trained(stage, seen)
            continue
        # Neither a cache of logits nor an average of predictions has features or further views; and a loss that asks
        # which class is right has no answer for mixed labels.
        reasons = r"features|view" if source != "live" else r"^$"
        assert re.search(rf"{reasons}|class indices" if mixed else reasons, refusal), f"{entry}: {refusal}"


def role_of(source: str, providers: dict[str, Any], batches: Loader) -> Role:
    if source == "live":
        return Role(model=providers["live"])
    return Role(provider=CachedTeacher(providers["cached"], batches) if source == "cached" else providers["ensemble"])


class TestTerms:
    def test_are_those_of_the_members_and_the_cross_entropy_counts_once(self) -> None:
        stage = stage_of(*make_method({"methods": ["kd", {"name": "at", "weight": 0.5}]}))
        batch = stage.first_batch()
        terms = stage.terms(batch)
        assert list(terms) == ["ce", "kd", "at"]
        for name in ("kd", "at"):
            alone = stage_of(*make_method({"name": name})).terms(batch)
            for term, value in alone.items():
                torch.testing.assert_close(terms[term], value)
        progress = Progress(0, 1, 1)
        weights = {name: weight_at(weight, progress) for name, weight in stage.method.weights.items()}
        assert weights == {"ce": 0.1, "kd": 0.9, "at": 500.0}

    def test_of_one_name_and_another_value_are_told_apart(self) -> None:
        stage = stage_of(*as_method(["label_smoothing", {"name": "kd", "temperature": 1.0}, "kd"]))
        assert list(stage.terms(stage.first_batch())) == ["ce", "kd.ce", "kd", "kd2.kd"]

    def test_sum_to_the_loss_of_one_pass(self) -> None:
        seen = Losses()
        stage = stage_of(*as_method(["kd", "rkd"]), reporter=seen)
        batch, method = stage.first_batch(), stage.method
        expected = sum(
            weight_at(method.weights[name], Progress(0, STEPS, 1)) * as_term(value).mean().item()
            for name, value in stage.terms(batch).items()
        )
        stage.run()
        # The stage runs its student in train mode, the sum above was taken in eval mode; neither has dropout or
        # batch normalisation.
        assert seen.values[0] == pytest.approx(expected, rel=1e-5)

    def test_players_keep_their_own(self) -> None:
        stage = stage_of(*as_method(["dml", "kd"]))
        players = stage.method.players(stage.learners)
        assert players["student"][1] == {"ce", "kl", "kd"}
        assert players["peer"][1] == {"peer_ce", "peer_kl"}


class TestRefusals:
    def test_misspelt_weight_of_a_member(self) -> None:
        with pytest.raises(RecipeError, match=r"kd \+ at has no term 'kdd'"):
            stage_of(*make_method({"methods": [{"name": "kd", "weights": {"kdd": 1.0}}, "at"]}))

    def test_one_run_of_a_teacher_cannot_have_two_normalisations(self) -> None:
        with pytest.raises(NeedsError, match="statistics of each batch"):
            make_method({"methods": ["ofd", "kd"]})

    @pytest.mark.parametrize(
        ("methods_", "message"),
        [
            ([], "should be a list"),
            ("kd", "should be a list"),
            ([3], "a name, or a mapping"),
            ([{"temperature": 2.0}], "no name"),
            ([{"name": "kd", "weight": {"value": 1.0}}], "is a number"),
            ([{"name": "kd", "weight": -1.0}], "greater than or equal to 0"),
            (["kdd"], "Did you mean 'kd'"),
        ],
    )
    def test_malformed_lists(self, methods_: Any, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            make_method({"methods": methods_})

    def test_method_and_methods_in_one_stage(self) -> None:
        with pytest.raises(RecipeError, match="either `method` or `methods`"):
            load_recipe({"data": "digits", "roles": {"student": "mlp"}, "method": "kd", "methods": ["kd"]})


def test_recipe_lists_methods_and_names_them() -> None:
    recipe = load_recipe({"data": "digits", "roles": {"student": "mlp"}, "methods": ["kd", {"name": "at"}]})
    assert recipe.stages[0].method_name == "kd + at"
    plain = {"data": "digits", "roles": {"student": "mlp"}, "method": "kd"}
    assert load_recipe(plain, ["methods=[at, rkd]"]).stages[0].method_name == "at + rkd"
    assert load_recipe(plain, ["methods=[at, rkd]", "method=dkd"]).stages[0].method_name == "dkd"


def test_state_dict_holds_the_parts_of_every_member() -> None:
    stage = stage_of(*as_method(["fitnet", "vid"]))
    owners = {name.split(".")[1] for name in stage.method.state_dict()}
    assert owners == {"fitnet", "vid"}


class _Adds(Method):
    """Deploys the student with a part of its own."""

    extends_student = True

    def forward(self, batch: Any, student: Signals) -> Any:
        return {}

    def finish(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student, nn.Identity())


def test_the_student_passes_through_every_finish() -> None:
    student = nn.Linear(2, 2)
    with pytest.raises(NeedsError, match="only one can be its head"):
        Combined({"one": _Adds(), "two": _Adds()})
    assert isinstance(Combined({"one": _Adds(), "kd": as_method("kd")[0]}).finish(student), nn.Sequential)
