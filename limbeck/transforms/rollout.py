"""Rollouts: completions that the student, the teacher or both write in place of those of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.functional.off_policy import Origin, Threshold
from limbeck.generation import Alone, Draws, Mixed, Policy, Prompts, Sampling, Speculative, end_tokens, generate
from limbeck.hyperparameters import Count, Fraction, Positive, WholeNumber
from limbeck.rewards.scoring import Normalisation, OnError
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals
from limbeck.transforms.base import ModelTransform, transform
from limbeck.transforms.replay import Group, ReplayBuffer, packed, unpacked
from limbeck.transforms.rollout_log import RolloutLog, counted
from limbeck.transforms.rollout_rewards import RolloutRewards
from limbeck.transforms.rollout_rows import Row, Written, batch_of, prompt_of, rows_of, written_rows
from limbeck.transforms.rollout_sources import Adaptive, Sources, exchanged, probability_of, rank


@transform(
    "rollout",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    authors="Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos and"
    " Matthieu Geist and Olivier Bachem",
    paper="2306.13649",
    year=2023,
)
class Rollout(ModelTransform):
    """Replaces the completions of a batch by what models write after the same prompts.

    Adds ``on_policy`` ``[B]`` (which rows the student wrote, wholly or in part), ``policy_age`` ``[B]`` (optimizer
    steps since then), and where every row of the batch was written ``proposal_logprobs`` ``[B, T]`` (with which each
    token was drawn) and ``sampler_logprobs`` ``[B, T]`` (of each token under the student that wrote, at temperature 1
    and over the whole vocabulary: of the same kind as the log-probability of the student that trains, whose ratio to
    it importance sampling needs). Both lie where labels do. With a ``reward`` also ``reward``, ``advantage``, ``group``
    and ``group_best`` ``[B]``: what a completion is worth, and among those of its prompt.

    Random numbers belong to (seed, epoch, sample, number of the completion, position): a resumed run, another number of
    processes or another division into batches writes the same.

    Args:
        policy: who writes. ``student`` or ``teacher`` alone; ``mixed`` draws each token from both distributions with
            the teacher's part ``teacher_share``, as MiniLLM does; ``speculative`` lets the student propose and the
            teacher replace what is not among its ``teacher_top_k`` likeliest; ``data`` leaves completions as they are.
        probability: how often completions are written rather than taken from the data: a number; ``{from: 0, to: 1}``
            over the stage; or ``adaptive`` (``{adaptive: {start, margin, step}}``), which grows whenever the held-out
            loss has risen, as DistiLLM's does.
        unit: what is decided at once by ``probability``: a whole ``batch`` (GKD) or a ``sequence``.
        samples: completions a prompt; a batch then has as many times its rows.
        max_new_tokens: longest completion. It also ends where prompt and completion fill the context.
        temperature: divides logits for drawing.
        top_k: tokens that can be drawn; all when None.
        top_p: probability that these have together at least.
        greedy: take the likeliest token.
        prompt_tokens: first tokens of running text that are taken for a prompt, where the data has none.
        teacher_share: the teacher's part of ``mixed``.
        teacher_top_k: what ``speculative`` accepts.
        replay: ``{size, age, share}``: keep up to ``size`` sequences for at most ``age`` optimizer steps, and draw from
            them instead of writing; ``share`` says how much is still written anew (``decreasing``, ``constant``: half,
            ``increasing``).
        every: write for so many batches ahead at once, which is faster; the last of them is then ``every - 1`` steps
            off-policy.
        rows: sequences written at a time, where all at once need too much memory.
        end_tokens: ids that end a completion beside those that model, tokenizer and chat template name.
        reward: what completions are worth: a name, ``{name: maths, column: answer}``, or a list of them with weights;
            see :mod:`limbeck.rewards`.
        advantage: rewards among the completions of a prompt: ``group`` centres and scales them (GRPO), ``centred`` only
            centres them, ``none`` takes them as they are.
        on_error: whether a reward that fails ends the run (``raise``) or counts as 0 (``zero``).
        log: completions an epoch that are kept in ``rollouts.jsonl``.
        seed: seed of the run.
        num_classes: number of tokens.
        trust: allow rewards that run the code they name.

    Raises:
        RecipeError: options contradict each other or are out of range.
    """

    changes: ClassVar[frozenset[str]] = frozenset(
        {"inputs", "labels", "mask", "completion", "on_policy", "policy_age", "sampler_logprobs", "proposal_logprobs"}
        | {"reward", "advantage", "group", "group_best"}
    )

    def __init__(
        self,
        *,
        policy: Literal["student", "teacher", "mixed", "speculative", "data"] = "student",
        probability: Fraction | dict[str, Any] | Literal["adaptive"] = 1.0,
        unit: Literal["batch", "sequence"] = "batch",
        samples: Count = 1,
        max_new_tokens: Count = 64,
        temperature: Positive = 1.0,
        top_k: Count | None = None,
        top_p: Fraction = 1.0,
        greedy: bool = False,
        prompt_tokens: Count | None = None,
        teacher_share: Fraction = 0.2,
        teacher_top_k: Count = 25,
        replay: dict[str, Any] | None = None,
        every: Count = 1,
        rows: Count | None = None,
        end_tokens: list[int] | None = None,
        reward: str | dict[str, Any] | list[str | dict[str, Any]] | Callable[..., Any] | None = None,
        advantage: Normalisation = "group",
        on_error: OnError = "raise",
        log: WholeNumber = 4,
        seed: int,
        num_classes: int,
        trust: bool = False,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.policy, self.unit, self.samples, self.every = policy, unit, samples, every
        self.sampling = Sampling(temperature, top_k, top_p, greedy, max_new_tokens)
        self.prompt_tokens, self.rows = prompt_tokens, rows
        self.replay = None if replay is None else ReplayBuffer(**replay)
        self.sources = Sources(seed, probability_of(probability), unit, self.replay)
        self.log = RolloutLog(log)
        self.rewards = None
        if reward is not None:
            self.rewards = RolloutRewards(reward, advantage=advantage, on_error=on_error, samples=samples, trust=trust)
        self._further_ends = tuple(end_tokens or ())
        policies: dict[str, Policy] = {"mixed": Mixed(teacher_share), "speculative": Speculative(teacher_top_k)}
        self._rule = policies.get(policy, Alone())
        self._pending: dict[int, list[Group]] = {}
        self._ends: tuple[int, ...] = ()
        self._loader: Any = None
        if every > 1 and self.replay is not None:
            raise RecipeError("transform 'rollout': `every` and `replay` both reuse old samples; give one of them")
        if greedy and samples > 1:
            raise RecipeError("transform 'rollout': greedy completions of a prompt are all the same; set samples to 1")

    @property
    def runs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Roles that write."""
        names = {"student": ("student",), "teacher": ("teacher",), "data": ()}
        return names.get(self.policy, ("student", "teacher"))

    def bind(self, observers: Mapping[str, Callable[[Batch], Signals]], loader: Any = None) -> None:
        """Takes the roles that write, and the loader, whose tokenizer and context count.

        Raises:
            NeedsError: a role that is to write is not there, or is no model here.
        """
        super().bind(observers, loader)
        self._loader = loader
        for role, observe in self.observers.items():
            if not hasattr(observe, "writing"):
                raise NeedsError(
                    f"the role '{role}' is to write rollouts, but it is {type(observe).__name__} and no model here; "
                    "use a live model for it, or `policy: student`"
                )
            known = getattr(getattr(observe, "task", None), "vocabulary", None)
            if known is not None and self.num_classes and known != self.num_classes:
                raise NeedsError(
                    f"the role '{role}' is to write rollouts, but it has {known} tokens, the text {self.num_classes}; "
                    "a model with tokens of its own cannot write for the student, use `policy: student`"
                )
        writer = next(iter(self.observers.values()), None)
        tokenizer = getattr(getattr(loader, "source", None), "tokenizer", None)
        self._ends = (*end_tokens(getattr(writer, "model", None), tokenizer), *self._further_ends)
        self.log.tokenizer = tokenizer
        if self.rewards is not None:
            self.rewards.bind(getattr(loader, "source", None))

    def writers(self) -> tuple[str, ...]:
        """Roles that may write now: none where the draw of the batch, or what an earlier step wrote, forgoes it."""
        if self.training and self.every > 1:
            return () if self.progress.step in self._pending else self.runs
        if self.training and self.unit == "batch" and self.sources.origins([0], 0, self.progress) != ["generate"]:
            return ()
        return self.runs

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with completions that were written.

        Raises:
            DataError: there are no prompts, rows are packed, or nothing was written at all.
        """
        rows, step = rows_of(batch), self.progress.step
        if self.policy == "data":
            return self._rebuilt(rows, batch)
        origins = self._origins(rows, batch, self.progress)
        fresh = self._fresh([row for row, o in zip(rows, origins) if o == "generate"], batch)
        old = self._replayed(fresh, origins.count("replay"))
        sources = {"generate": iter(fresh), "replay": iter(old)}
        made: list[Row | Written] = []
        for row, chosen in zip(rows, origins):
            made += [row] if chosen == "data" else next(sources[chosen])
        if self.training:
            written, replayed = _flat(fresh), _flat(old)
            for sums in exchanged(counted(written, replayed, origins.count("data"), step)):
                self.log.add(sums)
            self.log.keep(written)
        return self._rebuilt(made, batch)

    def _rebuilt(self, rows: Sequence[Row | Written], batch: Batch) -> Batch:
        pad_id = getattr(self.log.tokenizer, "pad_id", 0)
        own = self.policy not in ("teacher", "data")
        found = batch_of(rows, batch, pad_id=pad_id, step=self.progress.step, own=own)
        if self.rewards is not None:
            found |= Batch(self.rewards.entries(rows)).to(found["labels"].device)
        if not bool(found["mask"].any()):
            raise DataError(
                f"nothing was written after the prompts of samples {found['index'][:5].tolist()}: they fill the "
                "context of the model. Raise data.options.context, or lower prompt_tokens"
            )
        return found

    def _origins(self, rows: Sequence[Row], batch: Batch, progress: Progress) -> list[Origin]:
        """Returns where each row's completion comes from; outside training all are written, to try everything."""
        if not self.training:
            return ["generate"] * len(rows)
        return self.sources.origins([row.index for row in rows], int(batch.get("epoch", 0)), progress)

    def _replayed(self, fresh: Sequence[Group], count: int) -> list[Group]:
        """Returns this process's part of what all draw from the buffer, which then takes what is fresh."""
        if self.replay is None or not self.training:
            return []
        told = exchanged((list(fresh), count))
        before = sum(number for _, number in told[: rank()])
        drawn = self.replay.draw(self.seed, self.progress.step, sum(number for _, number in told))
        self.replay.push([group for groups, _ in told for group in groups])
        return drawn[before : before + count]

    def _fresh(self, rows: Sequence[Row], batch: Batch) -> list[Group]:
        """Returns completions for rows, written now or some steps ago."""
        if self.every == 1 or not self.training:
            return self._write(rows, batch)
        if self.progress.step not in self._pending:
            ahead = {self.progress.step: list(rows), **self._ahead()}
            groups = iter(self._write([row for part in ahead.values() for row in part], batch))
            self._pending = {step: [next(groups) for _ in part] for step, part in ahead.items()}
        known = {group[0].index: group for group in self._pending.pop(self.progress.step)}
        return [known[row.index] for row in rows]

    def _ahead(self) -> dict[int, list[Row]]:
        """Returns the rows of the next steps of this epoch whose completions are to be written."""
        progress = self.progress
        epoch, number = divmod(progress.step, progress.steps_per_epoch)
        count = min(self.every, progress.steps_per_epoch - number) - 1
        found = {}
        for further, batch in enumerate(islice(self._loader.epoch(epoch, number + 1), count), 1):
            then, rows = replace(progress, step=progress.step + further), rows_of(batch)
            origins = self._origins(rows, batch, then)
            found[then.step] = [row for row, o in zip(rows, origins) if o == "generate"]
        return found

    def _write(self, rows: Sequence[Row], batch: Batch) -> list[Group]:
        """Returns the completions of the prompts of rows."""
        if not rows:
            return []
        prompts = [prompt_of(row, self.prompt_tokens) for row in rows]
        with ExitStack() as stack:
            models: list[nn.Module] = [stack.enter_context(o.writing()) for o in self.observers.values()]  # type: ignore[attr-defined]
            device = next(models[0].parameters()).device
            room = torch.tensor([self._context(models[0], batch) + 1 - len(p) for p in prompts])
            found = generate(
                models,
                Prompts.of(prompts, device=device),
                self.sampling,
                draws=Draws(self.seed, "rollout", int(batch.get("epoch", 0)), [row.index for row in rows]),
                ends=self._ends,
                samples=self.samples,
                limits=room,
                policy=self._rule,
                vocabulary=self.num_classes or None,
                autocast=[o.autocast for o in self.observers.values()],  # type: ignore[attr-defined]
                rows=self.rows,
            )
        self.log.timed(int(found.lengths.sum()), found.seconds)
        groups = written_rows(found, rows, prompts, self.progress.step)
        return groups if self.rewards is None else self.rewards.judge(groups)

    def _context(self, model: nn.Module, batch: Batch) -> int:
        """Returns how many tokens a row may have: the data's context, or else the model's, or else the batch's."""
        source = getattr(getattr(self._loader, "source", None), "context", None)
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        return int(source or longest or batch["labels"].shape[1])

    def heard(self, evaluation: Mapping[str, float]) -> None:
        """Hears what an evaluation found; an adaptive probability looks at the held-out loss."""
        if isinstance(self.sources.probability, Adaptive) and "held_out_loss" in evaluation:
            self.sources.probability.judged(evaluation["held_out_loss"])

    def report(self) -> dict[str, float]:
        """Returns the numbers of the epoch: where completions came from, their length and age."""
        return self.log.summary()

    def records(self) -> list[dict[str, Any]]:
        """Returns some completions of the epoch."""
        return self.log.records()

    def rates(self) -> dict[str, float]:
        """Returns how many tokens this process writes a second."""
        return {"tokens_per_second": self.log.tokens_per_second} if self.log.tokens_per_second else {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a bit-exact continuation needs; every process must call it."""
        pending: dict[int, list[Group]] = {}
        for part in exchanged(self._pending):
            for step, groups in part.items():
                pending.setdefault(step, []).extend(groups)
        adaptive = self.sources.probability
        return {
            "pending": {str(step): packed(groups) for step, groups in pending.items()},
            "replay": None if self.replay is None else self.replay.state_dict(),
            "threshold": tuple(adaptive.threshold) if isinstance(adaptive, Adaptive) else None,
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._pending = {int(step): unpacked(groups) for step, groups in state["pending"].items()}
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        if isinstance(self.sources.probability, Adaptive):
            self.sources.probability.threshold = Threshold(*state["threshold"])
        self.log.load_state_dict(state["log"])


def _flat(groups: Sequence[Group]) -> list[Written]:
    return [row for group in groups for row in group]
