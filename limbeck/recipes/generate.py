"""Text that a recipe's roles write after the prompts of its data: once, and then read like other text."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import __version__
from limbeck.data.hashing import fingerprint as hashed
from limbeck.data.text import Chat, Pair, TextLoader, TextSource, load_text
from limbeck.data.text.generated import DATA, GENERATED, GeneratedSpec
from limbeck.data.text.options import divide_options
from limbeck.engine import distributed
from limbeck.errors import DataError, RecipeError
from limbeck.generation.answers import Lines, own_answer, prompt_of, sorted_out
from limbeck.generation.written import Completion, refuse_another
from limbeck.hyperparameters import validated_model
from limbeck.recipes.language import build_text
from limbeck.recipes.load import load_recipe
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import DataSpec, StageSpec
from limbeck.recipes.stage_data import StageData
from limbeck.recipes.writers import Progress, Writers, Writing, prompts_hash
from limbeck.recipes.writing_forecast import WriterForecast, WritingForecast
from limbeck.rewards import build_reward
from limbeck.storage import write_durably

_FORMAT = "limbeck-text"


@dataclass(frozen=True)
class WrittenText:
    """Text that roles have written.

    Attributes:
        path: the JSONL file.
        lines: number of lines.
        left_out: answers or pairs that were left out, by reason.
        tried: where only a few prompts were answered, how many of how many, and what the roles will take for all.
    """

    path: Path
    lines: int
    left_out: Mapping[str, int]
    tried: tuple[int, int, tuple[WriterForecast, ...]] | None = None

    def __str__(self) -> str:
        """One sentence for people."""
        gone = ", ".join(f"{count:,} {why}" for why, count in self.left_out.items() if count)
        return f"{self.lines:,} lines{f' (left out: {gone})' if gone else ''}"


def generated_data(spec: DataSpec, stage: StageSpec, seed: int, writing: Writing, *, shuffle: bool = True) -> StageData:
    """Returns text that roles have written as training data; the student is judged on the data's own text.

    Args:
        spec: ``data`` of the stage, whose options are those of :class:`GeneratedSpec` and of rows of tokens.
        stage: the stage.
        seed: seed of the order of rows.
        writing: who writes.
        shuffle: whether training rows come in random order.

    Raises:
        LimbeckError: a role cannot write, the data has no prompts, or nothing useful was written.
    """
    wish, base = _wish(spec), build_text(_prompts_spec(spec), stage, seed, shuffle=shuffle)
    source = base.train
    assert isinstance(source, TextSource)
    options, _ = divide_options(spec.options)
    rows: dict[str, Any] = {**options.rows, "test": 0.0}
    with tempfile.TemporaryDirectory() as temporary:
        found = _written(wish, base, writing, Path(temporary))
        train = load_text(
            {"name": "jsonl", "path": str(found.path)}, source.tokenizer, canaries=options.canaries, **rows
        )
    train.notes = (*source.notes, f"written by {' and '.join(wish.sources)}: {found}", *train.notes)
    train.info = replace(train.info, name=f"{GENERATED} from {source.info.name}", licence=source.info.licence)
    loader = TextLoader(
        train,
        batch_size=stage.train.batch_size,
        seed=seed,
        shuffle=shuffle,
        fixed_length=stage.train.compile,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        views=make_method(stage.method)[0].needs.views,
    )
    return replace(base, train=train, loader=loader, to_write=_to_write(found, train))  # type: ignore[arg-type]


def _to_write(found: WrittenText, train: TextSource) -> WritingForecast | None:
    """Returns what the whole text takes of which a few lines were written."""
    if found.tried is None:
        return None
    tried, prompts, writers = found.tried
    planted = sum(train.canaries.values())
    rows = planted + round((len(train) - planted) * prompts / tried)
    return WritingForecast(prompts, tried, (len(train), rows), writers)


def generate_recipe(
    recipe: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: Path,
    trust: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> WrittenText:
    """Writes text of a recipe's roles into a JSONL file, after the prompts of the training data of its last stage.

    A killed call goes on where it was; what a server was paid for is asked no second time. Beside the file lies
    ``<file>.json``, which says who wrote what how. A file that holds something else is refused.

    Args:
        recipe: a file, the name of a shipped recipe or a mapping.
        overrides: ``key=value`` strings.
        out: the file.
        trust: allow models and rewards that run the code they name.
        progress: called with the prompts that are done and all of them.
        options: those of :class:`limbeck.data.text.generated.GeneratedSpec` without ``of``; they take precedence over
            those of a recipe that reads generated text itself.

    Raises:
        LimbeckError: the recipe cannot work, a role cannot write, or the file holds other text.
    """
    loaded = load_recipe(recipe, overrides)
    stage = loaded.stages[-1]
    data = stage.data
    if data.name != GENERATED:
        kept, own = _parted(data)
        path = {} if data.path is None else {"path": data.path}
        data = data.model_copy(
            update={"name": GENERATED, "path": None, "options": {**kept, "of": {"name": data.name, **path, **own}}}
        )
    data = data.model_copy(update={"options": {**data.options, **options}})
    base = build_text(_prompts_spec(data), stage, loaded.seed, shuffle=False)
    writing = Writing(loaded, stage, trust, _missing_stage, progress=progress)
    wish = _wish(data)
    return _written(wish, base, writing, Path(wish.folder), out=out)


def _missing_stage(name: str, model: nn.Module) -> None:
    raise RecipeError(
        f"the writer comes from the stage '{name}', which has not run here; name its weights instead, for example "
        "roles.teacher='{model: ..., weights: runs/FOLDER}'"
    )


def _wish(spec: DataSpec) -> GeneratedSpec:
    return validated_model(GeneratedSpec, _parted(spec)[1], f"data '{GENERATED}'")


def _parted(spec: DataSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options that say how text becomes rows, and those of the reader."""
    own = divide_options(spec.options)[1]
    return {key: value for key, value in spec.options.items() if key not in own}, own


def _prompts_spec(spec: DataSpec) -> DataSpec:
    """Returns the data whose prompts are used."""
    of = spec.options.get("of")
    if spec.path is not None or of is None:
        raise RecipeError(
            f"data '{GENERATED}' takes its prompts from other data; name it in data.options.of, for example "
            "{name: jsonl, path: prompts.jsonl}"
        )
    given = {"name": of} if isinstance(of, str) else dict(of)
    name, path = given.pop("name", None), given.pop("path", None)
    if not isinstance(name, str) or name == GENERATED:
        raise RecipeError(f"data.options.of names other text data, by name or {{name: ..., option: ...}}; it is {of!r}")
    # A secret is planted into what is trained on, and nobody is asked to go on from it.
    rows = {key: value for key, value in _parted(spec)[0].items() if key != "canaries"}
    return spec.model_copy(update={"name": name, "path": path, "options": {**given, **rows}})


def _written(
    wish: GeneratedSpec, base: StageData, writing: Writing, folder: Path, *, out: Path | None = None
) -> WrittenText:
    """Has the missing answers written, and puts them together into a file of lines."""
    source: Any = base.train
    prompts = [prompt_of(s, source.tokenizer, n, wish.prompt_tokens) for n, s in enumerate(source.sequences)]
    writers = Writers(wish, base, writing)
    # Text that is there already serves a trial too.
    places = [Path(wish.folder)] if writing.whole else [Path(wish.folder), folder]
    for place in places:
        some = prompts if place == places[0] else prompts[: 2 * writing.stage.train.batch_size]
        plans = {role: writers.plan(role, some) for role in wish.writers}
        line_plan = _line_plan(wish, plans, some)
        path = out or place / f"{_digest(line_plan)}.jsonl"
        known = distributed.on_first(functools.partial(_known, path, line_plan))
        if known is not None:
            return known
    answers: dict[str, Sequence[Sequence[Completion]]] = {DATA: [[own_answer(p)] * wish.samples for p in some]}
    forecasts = []
    for role, plan in plans.items():
        answers[role], forecast = writers.timed(role, some, plan, place / _digest(plan), of=len(prompts))
        forecasts.append(forecast)
    made = distributed.on_first(lambda: _put_together(wish, some, answers, path, line_plan, writing.trust))
    trial = len(some), len(prompts), tuple(forecasts)
    return made if writing.whole or out is not None else replace(made, tried=trial)


def _line_plan(wish: GeneratedSpec, plans: Mapping[str, Any], prompts: Sequence[Pair | Chat]) -> dict[str, Any]:
    """Returns everything that decides what the lines hold, as it is kept beside them."""
    return {
        "format": _FORMAT, "version": 1, "writers": dict(plans), "sources": list(wish.sources),
        "reward": wish.reward, "cut_off": wish.cut_off, "samples": wish.samples, "prompts": prompts_hash(prompts),
    }  # fmt: skip


def _known(path: Path, plan: Mapping[str, Any]) -> WrittenText | None:
    """Returns text that is there already."""
    side = _beside(path)
    if not path.exists():
        return None
    if not side.exists():
        raise RecipeError(f"'{path}' exists, and not by limbeck's hand; choose another file")
    found = json.loads(side.read_text())
    told = {key: found.get(key) for key in ("lines", "left_out", "limbeck")}
    refuse_another(side, {**plan, **told}, f"'{path}'")
    return WrittenText(path, int(found["lines"]), found["left_out"])


def _put_together(
    wish: GeneratedSpec,
    prompts: Sequence[Pair | Chat],
    answers: Mapping[str, Sequence[Sequence[Completion]]],
    path: Path,
    plan: Mapping[str, Any],
    trust: bool,
) -> WrittenText:
    running = all(isinstance(p, Pair) and "prompt" not in p.record for p in prompts)
    made = Lines(keep_cut_off=running if wish.cut_off is None else wish.cut_off == "keep")
    sides = [[made.usable(p, group) for p, group in zip(prompts, answers[source])] for source in wish.sources]
    if wish.reward is not None:
        reward = build_reward(wish.reward, trust=trust)
        # The data's own answers are right without being judged.
        sides = [
            side if source == DATA else sorted_out(reward, prompts, side, right=number == 0)
            for number, (source, side) in enumerate(zip(wish.sources, sides))
        ]
    for number, prompt in enumerate(prompts):
        if wish.pairs:
            made.add_pairs(prompt, sides[0][number], sides[1][number])
        else:
            made.add(prompt, sides[0][number])
    left_out = {why: count for why, count in made.left_out.items() if count}
    if not made.lines:
        raise DataError(
            f"nothing of what {' and '.join(wish.sources)} wrote can be used ({left_out or 'no answer was right'}); "
            "raise max_new_tokens or samples, or look at the prompts"
        )
    record = {**plan, "limbeck": __version__, "lines": len(made.lines), "left_out": left_out}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(_beside(path), [json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"])
    write_durably(path, [("\n".join(made.lines) + "\n").encode()])
    return WrittenText(path, len(made.lines), left_out)


def _digest(plan: Mapping[str, Any]) -> str:
    return hashed([json.dumps(plan, sort_keys=True, default=str)])[:16]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
