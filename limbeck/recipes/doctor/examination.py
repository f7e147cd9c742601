"""Examines a stage on text before it runs: every role's tokens, ends, numbers; the text; what a server leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.data.text import TextSource, Tokenizer, load_tokenizer
from limbeck.errors import CheckpointError, DataError, LimbeckError, UnknownNameError
from limbeck.functional.sequences import sequence_means
from limbeck.methods.sequence.base import token_log_probabilities
from limbeck.recipes.build import BuiltStage
from limbeck.recipes.doctor import conversations, models, servers, text, tokens
from limbeck.recipes.doctor.finding import Finding, refuse
from limbeck.recipes.schema import RoleSpec, StageSpec
from limbeck.signals import Batch, Signals

_ORDER = {"error": 0, "warning": 1, "note": 2}


def examine(built: BuiltStage, spec: StageSpec) -> list[Finding]:
    """Returns what is wrong, may be wrong, or is worth knowing of a stage on text; the worst first.

    Args:
        built: the stage.
        spec: what it was built from.
    """
    source = built.data.train
    if not isinstance(source, TextSource):
        return []
    found = [
        *tokens.check_padding(source.tokenizer),
        *conversations.check_begins(source.tokenizer, [s.ids for s in source.sequences]),
        *text.check_text(source),
        *_roles(built, spec, source),
    ]
    return sorted(dict.fromkeys(found), key=lambda finding: _ORDER[finding.severity])


def _roles(built: BuiltStage, spec: StageSpec, source: TextSource) -> Iterator[Finding]:
    batch = built.stage.first_batch()
    stops: dict[str, set[int]] = {}
    chat = any(s.prompt for s in source.sequences) and bool(source.tokenizer.template)
    for role, observer in built.stage.observers.items():
        if role not in spec.roles:
            continue
        trains = role in built.stage.learners
        own = None if reads_other_tokens(batch, role) else tokenizer_of(spec.roles[role], spec.roles)
        for member in () if reads_other_tokens(batch, role) else spec.roles[role].nested():
            theirs = tokenizer_of(member, spec.roles)
            if theirs is not None:
                yield from compare_with_data(role, theirs, source.tokenizer, chat=chat)
        model = getattr(observer, "model", None)
        if isinstance(model, nn.Module):
            stops[role] = conversations.stops_of(model)
            yield from _model(role, model, built, spec, own or source.tokenizer, trains, chat)
        yield from _signals(role, observer, batch, built, spec)
    if {"student", "teacher"} <= stops.keys():
        yield from conversations.compare_ends("student", stops["student"], stops["teacher"], "teacher")


def compare_with_data(role: str, theirs: Tokenizer, ours: Tokenizer, *, chat: bool) -> list[Finding]:
    """Returns what differs between the tokenizer that comes with a model and that of the data.

    Args:
        role: the model's role.
        theirs: the model's tokenizer.
        ours: the data's; where it was trimmed, the one it is part of is compared.
        chat: whether the data are written by a chat template.
    """
    whole = ours.origin or ours
    if whole.name == theirs.name:
        return []
    found = tokens.compare_tokenizers(role, theirs, whole)
    return found + conversations.compare_templates(role, theirs, whole) if chat else found


def refuse_other_tokens(role: str, spec: RoleSpec, roles: Mapping[str, RoleSpec], ours: Tokenizer) -> None:
    """Refuses a pretrained model that means other text by the tokens of the data.

    Raises:
        RecipeError: it does; says by which tokens.
    """
    theirs = tokenizer_of(spec, roles, known=(ours.origin or ours).name)
    if theirs is not None:
        refuse(compare_with_data(role, theirs, ours, chat=False))


def tokenizer_of(spec: RoleSpec, roles: Mapping[str, RoleSpec], *, known: str = "") -> Tokenizer | None:
    """Returns the tokenizer that comes with a role's model; None where none does, or it is the one of a known name."""
    while spec.from_role in roles:
        spec = roles[str(spec.from_role)]
    name = spec.model.get("name") if isinstance(spec.model, Mapping) else spec.model or spec.from_role
    made = isinstance(spec.model, Mapping) and spec.model.get("pretrained") is False
    if not isinstance(name, str) or made or name == "llama" or name.startswith("python:") or name == known:
        return None
    try:
        return load_tokenizer(name)
    except (CheckpointError, DataError, UnknownNameError):
        return None


def reads_other_tokens(batch: Batch, role: str) -> bool:
    """Whether a batch holds other tokens for a role than for the student: its tokenizer may differ then."""
    return role != "student" and (f"{role}_inputs" in batch or f"{role}_labels" in batch)


def _model(
    role: str, model: Any, built: BuiltStage, spec: StageSpec, own: Tokenizer, trains: bool, chat: bool
) -> Iterator[Finding]:
    source: Any = built.data.train
    rows = getattr(getattr(model, "config", None), "vocab_size", None)
    if rows is not None:
        yield from tokens.check_rows(role, int(rows), source.tokenizer.vocabulary)
    yield from models.check_context(role, model, own, source.context)
    yield from models.check_logit_changes(role, model)
    precision = spec.roles[role].precision or spec.train.precision
    yield from models.check_numbers(role, model, trains=trains, lr=spec.train.lr, precision=precision)
    yield from models.check_adapters(role, model)
    yield from models.check_sampling(role, model)
    found = conversations.stops_of(model)
    if found:
        yield from conversations.check_ends(role, source.tokenizer, found, conversations=chat, trained=trains)


def _signals(role: str, observer: Any, batch: Batch, built: BuiltStage, spec: StageSpec) -> Iterator[Finding]:
    """Looks at what a role says about the first batch."""
    if hasattr(observer, "probed"):
        temperature = float(getattr(built.stage.method, "temperature", 1.0) or 1.0)
        asked = int((spec.roles[role].remote or {}).get("top", 20))
        yield from servers.check_server(role, observer.probed(), asked=asked, temperature=temperature)
    with torch.no_grad():
        signals: Signals = observer(batch)
    half = any(p.dtype == torch.float16 for p in getattr(observer, "model", nn.Module()).parameters())
    for what, values in _values(signals).items():
        yield from models.check_values(role, values, what, half=half)
    if signals.topk is not None:
        listed = signals.topk.indices.shape[-1]
        yield from servers.check_tail(role, signals.topk.tail, batch["mask"], listed)
    if role in built.stage.learners or reads_other_tokens(batch, role) or signals.topk or signals.sampled:
        return
    try:
        said = token_log_probabilities(signals, batch["labels"], batch["mask"])
    except LimbeckError:
        return
    mask = batch["mask"]
    loss = -float(sequence_means(said, mask)[mask.any(-1)].mean())
    yield from models.check_knows(role, loss, built.data.train.info.num_classes)


def _values(signals: Signals) -> dict[str, torch.Tensor]:
    found = {"logits": signals.logits, "hidden states": None if signals.hidden is None else signals.hidden.states}
    return {what: values for what, values in found.items() if values is not None}
