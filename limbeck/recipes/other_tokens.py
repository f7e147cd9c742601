"""Teachers that read other tokens than their student: which they are, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.data.text import TeacherText, Tokenizer, load_tokenizer
from limbeck.data.text.token_bytes import TokenBytes
from limbeck.engine.roles import Role
from limbeck.errors import DataError, RecipeError
from limbeck.methods.base import Method, methods
from limbeck.methods.sequence.text_pair import ENTRIES
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import StageSpec


def reads_across(method: Method) -> bool:
    """Whether a method, or one of several that are used at once, compares a teacher with other tokens."""
    members: Any = getattr(method, "members", None)
    every = list(members.values()) if members is not None else [method]
    return any(getattr(m, "optional_entries", frozenset()) >= ENTRIES for m in every)


def methods_across() -> list[str]:
    """Returns the names of the methods that compare a teacher with other tokens."""
    return [name for name in methods if getattr(methods[name].part, "optional_entries", frozenset()) >= ENTRIES]


def other_tokenizers(stage: StageSpec, named: str | None, ours: Tokenizer) -> dict[str, Tokenizer]:
    """Returns the tokenizers of roles that read other tokens than the data's, by role.

    Args:
        stage: the stage.
        named: name of the teacher's tokenizer; the one that comes with its model when None.
        ours: the data's tokenizer.

    Raises:
        RecipeError: the method compares token by token, or the teacher is one that cannot be asked about other tokens.
    """
    method = make_method(stage.method)[0]
    if not reads_across(method):
        if named is not None:
            raise RecipeError(
                f"data.options.teacher_tokenizer: '{stage.method_name}' compares teacher and student token by token; "
                f"remove it, or use a method across tokenizers: {', '.join(methods_across())}"
            )
        return {}
    theirs = _of_teacher(stage, ours) if named is None else load_tokenizer(named)
    if theirs is None or same_tokens(theirs, ours):
        return {}
    _check_teacher(stage, method)
    return {"teacher": theirs}


def _check_teacher(stage: StageSpec, method: Method) -> None:
    """Refuses a teacher that cannot be asked about a text in other tokens, or tells less than the method needs."""
    teacher = stage.roles["teacher"]
    for kind in ("cache", "ensemble", "router"):
        if getattr(teacher, kind) is not None:
            raise RecipeError(
                f"roles.teacher is a {kind}, which knows the text in the tokens of the data; across tokenizers use a "
                "live model, or a server"
            )
    told = {"topk", "logprobs"}
    if teacher.remote is not None and not all(told & set(need.split("|")) for need in method.needs.roles["teacher"]):
        fit = [n for n in methods_across() if all(told & set(need.split("|")) for need in _teacher_needs(n))]
        raise RecipeError(
            f"'{stage.method_name}' compares whole distributions, but roles.teacher is a server, which lists the "
            f"likeliest tokens; use a live model, or a method that those are enough for: {', '.join(fit)}"
        )


def _teacher_needs(name: str) -> frozenset[str]:
    return methods[name].part.needs.roles["teacher"]


def _of_teacher(stage: StageSpec, ours: Tokenizer) -> Tokenizer | None:
    from limbeck.recipes.doctor.examination import tokenizer_of

    spec = stage.roles.get("teacher")
    return None if spec is None else tokenizer_of(spec, stage.roles, known=(ours.origin or ours).name)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers mean the same bytes by every token and end a document by the same one."""
    if one.fingerprint == other.fingerprint:
        return True
    try:
        return one.eos_id == other.eos_id and TokenBytes(one).pieces == TokenBytes(other).pieces
    except DataError:
        return one.eos_id == other.eos_id and one.backend.get_vocab() == other.backend.get_vocab()


def teacher_text(tokenizers: Mapping[str, Tokenizer], source: Any, roles: Mapping[str, Role]) -> TeacherText | None:
    """Returns what writes batches in the tokens of the teacher; None where it reads those of the data.

    Raises:
        DataError: the tokens of one of the tokenizers do not say which bytes they stand for.
    """
    if "teacher" not in tokenizers:
        return None
    config = getattr(roles["teacher"].model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    return TeacherText(source.tokenizer, tokenizers["teacher"], source=source, limit=limit)
