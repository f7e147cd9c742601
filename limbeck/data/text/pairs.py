"""Two answers to one prompt, of which the first is preferred: what a record says, and its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from limbeck.data.hashing import hash_bytes
from limbeck.data.text.encoding import Encoded, encode_example
from limbeck.data.text.examples import Chat, EmptyAnswerError, Example, Pair, as_example, text_of, turns_of
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError

SIDES = ("chosen", "rejected")
_SHOWN = 3
_NAMED = 10


@dataclass(frozen=True)
class Preference:
    """Two answers to the same prompt.

    Attributes:
        chosen: the prompt with the answer that is preferred.
        rejected: the prompt with the other one.
    """

    chosen: Pair | Chat
    rejected: Pair | Chat

    @property
    def sides(self) -> tuple[Pair | Chat, Pair | Chat]:
        """Both, the preferred one first."""
        return self.chosen, self.rejected


def as_record(record: Mapping[str, Any], where: str) -> Example | Preference:
    """Returns what a record says: two answers where it has ``chosen`` or ``rejected``, one example otherwise.

    Raises:
        DataError: it is neither; names ``where``.
    """
    return as_preference(record, where) if any(side in record for side in SIDES) else as_example(record, where)


def as_records(records: Iterable[tuple[Mapping[str, Any], str]]) -> list[Example | Preference]:
    """Returns what records say, each given with where it stands.

    Raises:
        DataError: a record is no example. Of empty answers all are counted, so that a file can be mended at once.

    Example:
        >>> answers = ["yes", "", "no", ""]
        >>> lines = [({"prompt": "?", "completion": a}, f"line {n} of a.jsonl") for n, a in enumerate(answers, 1)]
        >>> try:
        ...     as_records(lines)
        ... except DataError as error:
        ...     print(str(error).partition(". ")[2])
        So it is in 2 lines: 2, 4
    """
    found: list[Example | Preference] = []
    empty: list[str] = []
    first: EmptyAnswerError | None = None
    for record, where in records:
        try:
            found.append(as_record(record, where))
        except EmptyAnswerError as error:
            first = first or error
            empty.append(where.partition(" of ")[0])
    if first is None:
        return found
    if len(empty) == 1:
        raise first
    unit = empty[0].partition(" ")[0]
    numbers = ", ".join(place.removeprefix(unit).strip() for place in empty[:_NAMED])
    more = f" and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
    raise EmptyAnswerError(f"{first}. So it is in {len(empty):,} {unit}s: {numbers}{more}")


def as_preference(record: Mapping[str, Any], where: str) -> Preference:
    """Returns two answers to one prompt.

    The prompt is ``prompt``, text or a list of messages; or ``messages``. The answers ``chosen`` and ``rejected`` are
    text, or lists of messages, which may hold the prompt too: what both begin with. ``chosen_ended: false`` says that
    an answer was cut off, so that its end is not learnt; so does ``rejected_ended``.

    Raises:
        DataError: a side is missing or empty, or there is no prompt; names ``where``.

    Example:
        >>> as_preference({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "line 1").rejected
        Pair(prompt='2 + 2 =', completion=' 5')
    """
    for side, other in (SIDES, SIDES[::-1]):
        if record.get(side) is None:
            raise DataError(f"{where} has '{other}' but no '{side}'; a pair needs both answers")
    prompt = record.get("prompt", record.get("messages"))
    if all(isinstance(record[side], str) for side in SIDES):
        if prompt is None:
            raise DataError(f"{where} has two answers but no 'prompt' that they answer")
        answers = {side: text_of(record, side, where) for side in SIDES}
        if isinstance(prompt, str):
            ended = {side: record.get(f"{side}_ended") is not False for side in SIDES}
            return Preference(*(Pair(prompt, answers[side], record, ended[side]) for side in SIDES))
        given = turns_of(prompt, where, key="prompt")
        return _chats(given, [(("assistant", answers[side]),) for side in SIDES], record)
    return _from_conversations(record, prompt, where)


def _from_conversations(record: Mapping[str, Any], prompt: Any, where: str) -> Preference:
    chosen, rejected = (turns_of(record[side], where, key=side, answered=True) for side in SIDES)
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if shared == len(chosen) == len(rejected):
        # Equal conversations: all but the last turn is the prompt. What to do with them is decided later.
        shared -= 1
    if not shared:
        if prompt is None:
            raise DataError(f"{where}: 'chosen' and 'rejected' share no beginning, and there is no 'prompt'")
        given = (("user", prompt),) if isinstance(prompt, str) else turns_of(prompt, where, key="prompt")
    else:
        given = chosen[:shared]
    answers = chosen[shared:], rejected[shared:]
    for side, answer in zip(SIDES, answers):
        if not any(role == "assistant" for role, _ in answer):
            raise DataError(f"{where}: '{side}' holds no answer of the assistant beyond the prompt")
    return _chats(given, answers, record)


def _chats(
    given: tuple[tuple[str, str], ...], answers: Sequence[tuple[tuple[str, str], ...]], record: Mapping[str, Any]
) -> Preference:
    return Preference(*(Chat((*given, *answer), len(given), record) for answer in answers))


class EncodedPair(NamedTuple):
    """Token ids of two answers, each with its prompt.

    Attributes:
        chosen: the one that is preferred.
        rejected: the other one.
    """

    chosen: Encoded
    rejected: Encoded

    def key(self) -> int:
        """Returns a hash of the prompt: pairs with one prompt belong to one split."""
        return hash_bytes(self.chosen.ids[: self.chosen.prompt].astype("<i8").tobytes(), "prompt")


def holds_pairs(examples: Sequence[Example | Preference], name: str) -> bool:
    """Whether data consists of pairs of answers.

    Raises:
        DataError: some rows are pairs and some are not.
    """
    flags = [isinstance(example, Preference) for example in examples]
    if any(flags) and not all(flags):
        first = flags.index(not flags[0])
        raise DataError(
            f"'{name}' mixes pairs of answers with other rows: number 0 is {'a' if flags[0] else 'no'} pair, "
            f"number {first} is {'no' if flags[0] else 'a'} pair; put them into files of their own"
        )
    return bool(flags) and flags[0]


def encode_pairs(
    examples: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    name: str,
    context: int,
    bos: bool = False,
    too_long: Literal["cut", "drop", "error"] = "cut",
) -> tuple[list[EncodedPair], list[str]]:
    """Returns the tokens of pairs, and what was cut or left out, in words.

    A pair stays or goes as one: where a side is to be dropped, or nothing of its answer is left after cutting, the
    other side goes with it. Pairs whose sides are the same, as they are or after cutting, prefer nothing and are left
    out.

    Args:
        examples: the pairs.
        tokenizer: the tokenizer.
        name: what the data is called, for errors.
        context: tokens a model sees in one row.
        bos: begin prompts with the begin-of-sequence token.
        too_long: what happens to a pair with a side that is longer than a row: it is ``cut`` at the end, dropped, or an
            ``error``.

    Raises:
        DataError: a pair is too long and that is an error, or no pair is left.
    """
    whole = [
        EncodedPair(*(encode_example(s, tokenizer, bos=bos, where=f"sample {n} of '{name}'") for s in example.sides))
        for n, example in enumerate(examples)
    ]
    long = {n for n, pair in enumerate(whole) if max(map(len, pair)) > context + 1}
    if long and too_long == "error":
        raise DataError(
            f"{len(long)} pairs of '{name}' (the first is number {min(long)}) have a side that is longer than the "
            f"context of {context}; raise `context`, or set `too_long` to cut or drop"
        )
    notes = []
    if long:
        what = "cut to" if too_long == "cut" else "left out: a side is longer than"
        notes.append(f"{len(long)} of {len(whole)} pairs of '{name}' {what} {context} tokens")
    cut = {n: _cut(pair, context) for n, pair in enumerate(whole) if n not in long or too_long == "cut"}
    empty = [n for n, pair in cut.items() if not (pair.chosen.targets and pair.rejected.targets)]
    equal = [n for n, pair in cut.items() if n not in set(empty) and pair.chosen.key() == pair.rejected.key()]
    for numbers, why in ((empty, "have a side without a token to predict"), (equal, "have equal sides")):
        if numbers:
            first = ", ".join(map(str, numbers[:_SHOWN]))
            notes.append(f"{len(numbers)} pairs of '{name}' {why} and are left out (numbers {first}...)")
    gone = {*empty, *equal}
    kept = [pair for n, pair in cut.items() if n not in gone]
    if not kept:
        raise DataError(
            f"no pair of '{name}' has two different answers with a token to predict within {context} tokens: "
            f"{'; '.join(notes)}. Raise `context`, or look at the data"
        )
    return kept, notes


def sides_of(rows: Sequence[Encoded | EncodedPair], name: str) -> tuple[list[Encoded], list[Encoded]]:
    """Returns the sequences of rows, and the answers that they are preferred to; none where the rows are no pairs.

    Raises:
        DataError: some rows are pairs and some are not.
    """
    pairs = [row for row in rows if isinstance(row, EncodedPair)]
    if not pairs:
        return [row for row in rows if isinstance(row, Encoded)], []
    if len(pairs) < len(rows):
        raise DataError(f"a part of '{name}' holds pairs of answers and another does not; train on them one by one")
    return [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]


def _cut(pair: EncodedPair, context: int) -> EncodedPair:
    return EncodedPair(*(side.cut(context + 1) for side in pair))


def asked(example: Example) -> tuple[tuple[str, str], ...]:
    """Returns the turns of a conversation before the first one that is to be learnt.

    Raises:
        DataError: the example is no conversation.
    """
    if not isinstance(example, Chat):
        raise DataError(f"a {type(example).__name__.lower()} is no conversation, so it has no turn that asks")
    turns = enumerate(example.messages)
    first = next(n for n, (role, _) in turns if role == "assistant" and n >= example.learn_from)
    return example.messages[:first]
