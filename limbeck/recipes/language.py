"""From a recipe to the parts of a stage on text: tokenizer, rows of tokens, language models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import streams
from limbeck.data.text import TextLoader, TextSource, Tokenizer, load_text, load_tokenizer
from limbeck.data.text.generated import GENERATED
from limbeck.data.text.options import divide_options
from limbeck.engine import distributed
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder, epoch_records
from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.evaluate.teacher_hacking import HackingWatch
from limbeck.recipes.cutting import cut_student, trimmed_model, wanted_vocabulary, with_fewer_tokens
from limbeck.recipes.method_section import make_method
from limbeck.recipes.other_tokens import other_tokenizers, reads_across
from limbeck.recipes.schema import DataSpec, Recipe, RoleSpec, StageSpec, goes_on
from limbeck.recipes.stage_data import StageData, check_holdout
from limbeck.recipes.stage_roles import RoleBuilder
from limbeck.recipes.task_section import make_task
from limbeck.students.language import build_language_model, known_language_model
from limbeck.students.loading import load_weights
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.live import FrozenTeacher

_HELD_ROWS = 8
_NOT_OF_TEXT = {
    **dict.fromkeys(("augment", "views"), "images"),
    **dict.fromkeys(
        ("imbalance", "label_noise", "labelled", "unlabelled", "labelled_per_batch", "label_ids"), "classes"
    ),
}
"""Keys of a data section that text does not have, and what has them."""


def build_text(spec: DataSpec, stage: StageSpec, seed: int, *, shuffle: bool = True) -> StageData:
    """Returns the text of a stage as rows of tokens.

    Args:
        spec: which data; ``options`` hold ``tokenizer``, ``context``, ``packed``, ``bos``, ``too_long``, ``test``,
            ``canaries`` and the options of the reader. The tokenizer is that of the teacher, or else of the student,
            when none is named; with a method across tokenizers that of the student, and ``teacher_tokenizer`` that of
            the teacher.
        stage: its batch size and roles.
        seed: seed of the order of rows.
        shuffle: whether training rows come in random order.

    Raises:
        LimbeckError: the data or its tokenizer cannot be had, or an option is wrong.
    """
    _refuse_pictures(spec)
    check_holdout(spec)
    options, reader = divide_options(spec.options)
    tokenizer = load_tokenizer(options.tokenizer or _tokenizer_of(stage))
    others = other_tokenizers(stage, options.teacher_tokenizer, tokenizer)
    where: dict[str, Any] = {"name": spec.name, **reader}
    if spec.path is not None:
        where["path"] = spec.path
    shared: dict[str, Any] = {
        **options.rows, "validation": spec.validation, "holdout": spec.holdout, "limit": spec.limit,
    }  # fmt: skip
    whole = {**shared, "packed": False}
    split = "validation" if spec.validation else "test"
    trained_on: Any = "holdout" if spec.train_on == "holdout" else "train"

    def read(tokens: Tokenizer) -> TextSource:
        return load_text(where, tokens, split=trained_on, canaries=options.canaries, **shared)

    train = with_fewer_tokens(read(tokenizer), wanted_vocabulary(stage), read)
    tokenizer = train.tokenizer
    held = load_text(where, tokenizer, split=split, **whole)  # type: ignore[arg-type]
    ranks: dict[str, int] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = TextLoader(
        train,
        batch_size=stage.train.batch_size,
        seed=seed,
        shuffle=shuffle,
        fixed_length=stage.train.compile,
        views=make_method(stage.method)[0].needs.views,
        **ranks,
    )
    size = max(stage.train.batch_size, _HELD_ROWS)
    held_loader = TextLoader(held, batch_size=size, seed=seed, shuffle=False)
    apart = None
    if spec.holdout:
        kept_out = load_text(where, tokenizer, split="holdout", **whole)
        apart = TextLoader(kept_out, batch_size=size, seed=seed, shuffle=False)
    return StageData(train, held, split, loader, held_loader, apart, others)  # type: ignore[arg-type]


def stage_text(
    recipe: Recipe,
    spec: StageSpec,
    *,
    trust: bool = False,
    earlier: Callable[[str, nn.Module], None] | None = None,
    whole: bool = True,
    shuffle: bool = True,
) -> StageData:
    """Returns the text of a stage: the data's, or what its roles write (see :mod:`limbeck.recipes.generate`).

    Args:
        recipe: the whole recipe.
        spec: the stage.
        trust: allow models that run the code they name.
        earlier: loads into a model the weights that an earlier stage left behind.
        whole: have all text written that is not there; otherwise a few lines, to see whether the recipe works.
        shuffle: whether training rows come in random order.
    """
    if spec.data.name != GENERATED:
        return build_text(spec.data, spec, recipe.seed, shuffle=shuffle)
    from limbeck.recipes.generate import Writing, generated_data

    return generated_data(spec.data, spec, recipe.seed, Writing(recipe, spec, trust, earlier, whole), shuffle=shuffle)


def _refuse_pictures(spec: DataSpec) -> None:
    plain = DataSpec(name=spec.name)
    for key, what in _NOT_OF_TEXT.items():
        given = getattr(spec, key)
        if given not in ((), getattr(plain, key)):
            raise RecipeError(f"data.{key} is for {what}; text has none, remove it")


def _tokenizer_of(stage: StageSpec) -> str:
    """Returns the name of the teacher's tokenizer (across tokenizers the student's), or else of another role's.

    Raises:
        RecipeError: no role has a pretrained model, whose tokenizer could be taken.
    """
    first = "student" if reads_across(make_method(stage.method)[0]) else "teacher"
    order = sorted(stage.roles, key=lambda role: (role != first, role))
    for role in order:
        spec = stage.roles[role]
        model = spec.model.get("name") if isinstance(spec.model, Mapping) else spec.model or spec.from_role
        if isinstance(model, str) and model not in stage.roles and not model.startswith(("python:", "llama")):
            return model
    raise RecipeError(
        "no role has a pretrained model whose tokenizer the text could take; name one in data.options.tokenizer, for "
        "example hf:NAME, smollm2-135m-instruct or bytes"
    )


@dataclass
class LanguageRoles(RoleBuilder):
    """Makes the roles of a stage on text."""

    _made: dict[str, nn.Module] = field(default_factory=dict, init=False)

    def build(self, name: str, spec: RoleSpec) -> Any:
        """Returns a role; a student that is cut from another role's model is made here."""
        if spec.remote is not None:
            from limbeck.teachers.remote.provider import remote_teacher

            assert isinstance(self.data.loader, TextLoader)
            return Role(provider=remote_teacher(spec.remote, self.data.loader, self.data.tokenizers.get(name)))
        if spec.router is not None:
            from limbeck.teachers.router import Router

            assert isinstance(self.data.train, TextSource)
            members = {domain: self._member(name, f"{name}_{domain}", m) for domain, m in spec.router.items()}
            return Role(provider=Router(members, self.data.train.domain_names))
        if spec.from_role is None:
            role = super().build(name, spec)
            return role if name not in self.data.tokenizers else replace(role, task=self._task_of(name))
        return Role(model=self._cut(name, spec), taps=spec.taps, precision=spec.precision)

    def _task_of(self, name: str) -> CausalLM:
        """Returns how a role is run that has a vocabulary of its own."""
        return CausalLM(vocabulary=self.data.tokenizers[name].vocabulary)

    def _cut(self, name: str, spec: RoleSpec) -> nn.Module:
        assert spec.from_role is not None
        origin = self.stage.roles.get(spec.from_role)
        shared = False
        if origin is not None and origin.model is not None:
            # The role's own model where it is there already: large ones take long to load.
            shared = spec.from_role in self._made
            whole = self._made[spec.from_role] if shared else self._model(spec.from_role, origin)
        elif origin is not None and _ends_in_a_model(spec.from_role, self.stage.roles):
            whole = self._cut(spec.from_role, origin)
        elif origin is not None:
            raise RecipeError(
                f"roles.{name} is cut from the role '{spec.from_role}', which has no model here; name the model "
                f"itself, roles.{name}.from: smollm2-135m-instruct for example"
            )
        else:
            _known_origin(name, spec.from_role, self.stage.roles)
            whole = trimmed_model(self._language_model(name, spec.from_role), self._tokenizer)
        source = self.data.train
        assert isinstance(source, TextSource)
        if not shared:
            # What is cut in place is nobody's model any more.
            self._made.pop(spec.from_role, None)
        copied = copy.deepcopy(whole) if shared else whole
        self._take_on(name, spec.from_role, copied)
        student = cut_student(copied, spec, source)
        if spec.weights is not None:
            load_weights(student, spec.weights)
        return student

    def _take_on(self, name: str, origin: str, model: nn.Module) -> None:
        """Gives the copy of a learner what the stage before has left it, since it is with that that it starts."""
        stages = list(self.recipe.stages)
        number = stages.index(self.stage)
        if origin not in make_method(self.stage.method)[0].learners or not number:
            return
        before = stages[number - 1]
        if not goes_on(before.roles.get(origin), self.stage.roles[origin]):
            return
        if self.earlier is None:
            raise RecipeError(
                f"roles.{name} is a copy of '{origin}' as the stage '{before.name}' leaves it, which has not run here; "
                f"name its weights instead, for example roles.{name}='{{model: ..., weights: runs/FOLDER}}'"
            )
        self.earlier(before.name, model)

    def _model(self, name: str, spec: RoleSpec) -> nn.Module:
        assert spec.model is not None
        model = self._language_model(name, spec.model)
        if spec.weights is not None:
            load_weights(model, spec.weights)
        self._made[name] = model = model if name in self.data.tokenizers else trimmed_model(model, self._tokenizer)
        return model

    @property
    def _tokenizer(self) -> Tokenizer:
        source = self.data.train
        assert isinstance(source, TextSource)
        return source.tokenizer

    def _language_model(self, name: str, spec: str | Mapping[str, Any]) -> nn.Module:
        source = self.data.train
        assert isinstance(source, TextSource)
        torch.manual_seed(streams.torch_seed(self.recipe.seed, f"init/{name}"))
        # Pretrained weights have the rows of the whole tokenizer; they are cut afterwards.
        whole = source.tokenizer.origin or source.tokenizer
        context = source.context
        if name in self.data.tokenizers:
            # How many tokens the text has there is not known yet; a pretrained model reads as many as it can.
            whole, context = self.data.tokenizers[name], 4 * context if _made_here(spec) else 1
        return build_language_model(spec, vocabulary=whole.vocabulary, context=context, trust=self.trust)

    def _cache(self, folder: str) -> Any:
        from limbeck.teachers.cache.sequences import CachedSequences

        assert isinstance(self.data.loader, TextLoader)
        return CachedSequences(Path(folder), self.data.loader)


def _made_here(spec: str | Mapping[str, Any]) -> bool:
    return (spec if isinstance(spec, str) else spec.get("name")) == "llama"


_CODECS: dict[str, dict[str, Any]] = {
    "fp32": {"name": "full", "dtype": "float32"},
    "fp16": {"name": "full", "dtype": "float16"},
    "topk": {"name": "topk"},
    "hidden": {"name": "hidden"},
    "sampled": {"name": "sampled"},
}


def cache_text(
    recipe: Recipe,
    spec: StageSpec,
    role: str,
    out: Path,
    codec: str,
    options: Mapping[str, Any],
    *,
    trust: bool,
    progress: Callable[[int, int], None] | None,
) -> str:
    """Writes what a role says about every token of the training text that counts; see :mod:`limbeck.recipes.cache`.

    ``options`` are parameters of the codec.

    Raises:
        RecipeError: the recipe has no such role, or it is trained, or the codec is unknown.
    """
    from limbeck.teachers.cache.sequences import describe_sequences, write_sequences

    if codec not in _CODECS:
        raise RecipeError(f"unknown codec '{codec}'. {suggest(codec, _CODECS)}")
    if role not in spec.roles:
        raise RecipeError(f"the recipe has no role '{role}' to cache. {suggest(role, spec.roles)}")
    if role in make_method(spec.method)[0].learners:
        raise RecipeError(f"the role '{role}' is trained, so its outputs change and cannot be cached")
    data = stage_text(recipe, spec, trust=trust, shuffle=False)
    task = make_task(spec.task, data)
    made = LanguageRoles(recipe, spec, data, task, trust, None).build(role, spec.roles[role])
    if made.model is None:
        raise RecipeError(f"roles.{role} has no model here to cache; it should be a live one")
    precision = made.precision or spec.train.precision
    teacher = FrozenTeacher(
        role, made.model, task, wanted=frozenset({"hidden|logits"}),
        autocast=torch.bfloat16 if precision == "bf16" else None,
    )  # fmt: skip
    packed = {**_CODECS[codec], **options}
    write_sequences(
        out, source=data.train, teacher=teacher, codec=packed, batch_size=spec.train.batch_size,  # type: ignore[arg-type]
        precision=precision, progress=progress,
    )  # fmt: skip
    return describe_sequences(out)


def refuse_other_tokens(spec: StageSpec, data: StageData) -> None:
    """Refuses pretrained models that mean other text by the tokens of the data than the data does.

    Raises:
        RecipeError: there is one; says by which tokens.
    """
    from limbeck.recipes import doctor

    batch = next(iter(data.loader.epoch(0)))
    for name, role in spec.roles.items():
        if name not in data.tokenizers and not doctor.reads_other_tokens(batch, name):
            for member in role.nested():
                doctor.refuse_other_tokens(name, member, spec.roles, data.train.tokenizer)  # type: ignore[attr-defined]


def _ends_in_a_model(role: str, roles: Mapping[str, RoleSpec]) -> bool:
    """Whether a role is a copy of a model, or of a copy of one."""
    seen: set[str] = set()
    while role in roles and role not in seen:
        seen.add(role)
        if roles[role].from_role is None:
            return roles[role].model is not None
        role = str(roles[role].from_role)
    return role not in roles


def watched_teacher(recipe: Recipe, roles: Mapping[str, Role]) -> nn.Module | None:
    """Returns the live teacher whose distance is to be logged after every epoch; None where nobody asked for it."""
    wanted = {entry if isinstance(entry, str) else entry.get("name") for entry in recipe.evaluate}
    if "teacher_hacking" not in wanted:
        return None
    models = (roles[role].model for role in ("teacher", "reference") if role in roles)
    return next((model for model in models if model is not None), None)


def watching(reporter: Reporter, folder: RunFolder | None) -> Reporter:
    """Returns a reporter that warns when a run starts to hack its teacher."""
    return HackingWatch(reporter, lambda: [] if folder is None else epoch_records(folder.path))


def _known_origin(role: str, origin: str, roles: Mapping[str, RoleSpec]) -> None:
    try:
        known_language_model(origin)
    except UnknownNameError as error:
        raise RecipeError(f"roles.{role}.from names no role and no model. {suggest(origin, roles)} {error}") from None
