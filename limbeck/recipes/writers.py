"""The roles of a recipe as writers: what decides what they write, and their answers, written where they are missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.hashing import fingerprint as hashed
from limbeck.data.text import Chat, Pair
from limbeck.data.text.generated import GeneratedSpec
from limbeck.engine import distributed
from limbeck.engine.roles import Role
from limbeck.errors import RecipeError, suggest
from limbeck.generation import Sampling
from limbeck.generation.model_writer import ModelWriter
from limbeck.generation.written import Completion, Parts, Writer, owned, write_parts
from limbeck.recipes.language import LanguageRoles
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import Recipe, StageSpec, goes_on
from limbeck.recipes.stage_data import StageData
from limbeck.recipes.task_section import make_task
from limbeck.recipes.writing_forecast import WriterForecast, model_bytes
from limbeck.teachers.fingerprint import fingerprint
from limbeck.teachers.remote import RemoteTeacher, RemoteWriter

Progress = Callable[[int, int], None]
_PART = 64


@dataclass(frozen=True)
class Writing:
    """What surrounds the roles that write.

    Attributes:
        recipe: the whole recipe.
        stage: the stage whose roles write.
        trust: allow models and rewards that run the code they name.
        earlier: loads into a model the weights that an earlier stage left behind.
        whole: write everything; a few prompts are enough to see whether a recipe works.
        progress: called with the prompts that are done and all of them.
    """

    recipe: Recipe
    stage: StageSpec
    trust: bool = False
    earlier: Callable[[str, nn.Module], None] | None = None
    whole: bool = True
    progress: Progress | None = None


class Writers:
    """The roles that write, made when they are needed.

    Args:
        wish: who is to write what.
        base: the data whose prompts are used.
        writing: what surrounds the roles.
    """

    def __init__(self, wish: GeneratedSpec, base: StageData, writing: Writing) -> None:
        self._wish, self._base, self._writing = wish, base, writing
        self._source: Any = base.train
        task = make_task(writing.stage.task, base)
        self._builder = LanguageRoles(writing.recipe, writing.stage, base, task, writing.trust, writing.earlier)
        self._roles: dict[str, Role] = {}

    def plan(self, role: str, prompts: Sequence[Pair | Chat]) -> dict[str, Any]:
        """Returns everything that decides what a role writes."""
        wish, tokenizer = self._wish, self._source.tokenizer
        made = self._role(role)
        who = fingerprint(made.model) if made.model is not None else made.provider.fingerprint()  # type: ignore[union-attr]
        sampling = wish.model_dump(include={"samples", "max_new_tokens", "temperature", "top_k", "top_p", "greedy"})
        return {
            "writer": who, "role": role, "tokenizer": tokenizer.fingerprint, "template": tokenizer.template_fingerprint,
            "prompts": prompts_hash(prompts), "seed": self._seed, "context": self._source.context,
            "bos": bool(self._writing.stage.data.options.get("bos", False)), "precision": self._precision(made),
            **sampling,
        }  # fmt: skip

    def answers(
        self, role: str, prompts: Sequence[Pair | Chat], plan: Mapping[str, Any], folder: Path
    ) -> list[list[Completion]]:
        """Returns a role's answers to every prompt, written where they are missing."""
        alone = distributed.world_size() == 1
        made = self._role(role)
        shared = made.model is not None and not alone
        share = (distributed.rank(), distributed.world_size()) if shared else (0, 1)

        def write() -> None:
            parts = Parts(folder, plan, prompts=len(prompts), size=_PART)
            write_parts(parts, prompts, self._writer(role), share=share, progress=self._writing.progress)

        def write_alone() -> None:
            with owned(folder):
                write()

        if shared:
            distributed.together(write)
        else:
            distributed.on_first(write_alone)
        return list(Parts(folder, plan, prompts=len(prompts), size=_PART).completions())

    def timed(
        self, role: str, prompts: Sequence[Pair | Chat], plan: Mapping[str, Any], folder: Path, *, of: int
    ) -> tuple[list[list[Completion]], WriterForecast]:
        """Returns a role's answers, and what it will take for so many prompts as these are a part ``of``."""
        paid, started = self._paid(role), time.perf_counter()
        found = self.answers(role, prompts, plan, folder)
        seconds = time.perf_counter() - started
        factor = of / len(prompts)
        tokens = sum(completion.tokens for group in found for completion in group)
        made = self._role(role)
        if made.model is not None:
            memory = model_bytes(made.model, rows=self._wish.rows, tokens=self._source.context + 1)
            return found, WriterForecast(role, round(tokens * factor), seconds * factor, memory)
        known = self._paid(role) == paid
        price = self._price(role, prompts, tokens)
        return found, WriterForecast(
            role, round(tokens * factor), None if known else seconds * factor,
            price=None if price is None else price * factor,
        )  # fmt: skip

    def _paid(self, role: str) -> int:
        """Returns how many answers a server was paid for, in all runs."""
        provider = self._role(role).provider
        return provider.client.ledger.answers if isinstance(provider, RemoteTeacher) else 0

    def _price(self, role: str, prompts: Sequence[Pair | Chat], tokens: int) -> float | None:
        """Returns what answers cost, whether they were paid now or before; None where nothing has a price."""
        provider = self._role(role).provider
        assert isinstance(provider, RemoteTeacher)
        prices, encode = provider.client.ledger.prices, self._source.tokenizer.encode
        if not (prices.prompt or prices.completion):
            return None
        asked = sum(len(encode(p.prompt)) if isinstance(p, Pair) else len(encode(str(p.messages))) for p in prompts)
        return prices.of({"prompt_tokens": asked * self._wish.samples, "completion_tokens": tokens})

    @property
    def _seed(self) -> int:
        return self._writing.recipe.seed if self._wish.seed is None else self._wish.seed

    def _precision(self, role: Role) -> str:
        return role.precision or self._writing.stage.train.precision

    def _role(self, name: str) -> Role:
        if name not in self._roles:
            stage = self._writing.stage
            if name not in stage.roles:
                raise RecipeError(f"the recipe has no role '{name}' that could write. {suggest(name, stage.roles)}")
            made = self._builder.build(name, stage.roles[name])
            if made.model is None and not isinstance(made.provider, RemoteTeacher):
                raise RecipeError(f"roles.{name} has no model here that could write, and is no server")
            if made.model is not None:
                self._take_on(name, made.model)
            self._roles[name] = made
        return self._roles[name]

    def _take_on(self, name: str, model: nn.Module) -> None:
        """Gives a learner what the stage before has left it, since it is with that that it starts."""
        stages, stage = list(self._writing.recipe.stages), self._writing.stage
        number = stages.index(stage)
        if name not in make_method(stage.method)[0].learners or not number or self._writing.earlier is None:
            return
        if goes_on(stages[number - 1].roles.get(name), stage.roles[name]):
            self._writing.earlier(stages[number - 1].name, model)

    def _writer(self, name: str) -> Writer:
        wish, role = self._wish, self._role(name)
        if isinstance(role.provider, RemoteTeacher):
            options = {"max_tokens": wish.max_new_tokens, "temperature": 0.0 if wish.greedy else wish.temperature}
            options |= {"top_p": wish.top_p} if wish.top_p < 1 else {}
            if wish.top_k is not None:
                raise RecipeError("top_k is no setting of the OpenAI protocol; leave it out for a server")
            return RemoteWriter(
                role.provider.client, options, samples=wish.samples, seed=self._seed,
                concurrency=role.provider.concurrency,
            )  # fmt: skip
        assert role.model is not None
        return ModelWriter(
            role.model,
            self._source.tokenizer,
            Sampling(wish.temperature, wish.top_k, wish.top_p, wish.greedy, wish.max_new_tokens),
            context=self._source.context + 1,
            samples=wish.samples,
            seed=self._seed,
            purpose=f"written/{name}",
            bos=bool(self._writing.stage.data.options.get("bos", False)),
            rows=wish.rows,
            autocast=torch.bfloat16 if self._precision(role) == "bf16" else None,
        )


def prompts_hash(prompts: Sequence[Pair | Chat]) -> str:
    """Returns a hash of prompts, and of what lines keep of the data beside them."""
    return hashed(json.dumps([repr(p), dict(p.record)], sort_keys=True, default=str) for p in prompts)
