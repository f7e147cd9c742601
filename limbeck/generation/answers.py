"""From text data to prompts, and from what was written after them to lines of text data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.data.text.encoding import Encoded
from limbeck.data.text.examples import Chat, Pair, turns_of
from limbeck.data.text.pairs import SIDES, as_preference, asked
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError
from limbeck.generation.written import Completion
from limbeck.rewards import Judged, Reward, score

_TEXT = frozenset({"text", "prompt", "completion", "messages", "ended", *SIDES, *(f"{side}_ended" for side in SIDES)})


def prompt_of(sequence: Encoded, tokenizer: Tokenizer, number: int, prompt_tokens: int | None = None) -> Pair | Chat:
    """Returns a sequence as a prompt with the data's own answer, in words.

    Args:
        sequence: tokens, with the line of data that they come from.
        tokenizer: their tokenizer.
        number: number of the sample, for errors.
        prompt_tokens: first tokens that are the prompt, where the sequence is running text.

    Raises:
        DataError: it is running text, and nobody says how much of it is the prompt.
    """
    record = sequence.record
    if all(side in record for side in SIDES):
        return as_preference(record, f"sample {number}").chosen
    if "messages" in record:
        return Chat(turns_of(record["messages"], f"sample {number}", answered=True), record=record)
    if "prompt" in record and "completion" in record:
        return Pair(record["prompt"], record["completion"], record, record.get("ended") is not False)
    length = sequence.prompt
    if length < 1:
        if prompt_tokens is None:
            raise DataError(
                f"sample {number} is running text without a prompt, so nothing says after what to write; set "
                "`prompt_tokens`, for example 32, or give data with prompts"
            )
        length = min(prompt_tokens, len(sequence) - 1)
    ids = sequence.ids.tolist()
    ended = ids[-1] == tokenizer.eos_id
    rest = tokenizer.decode(ids[length : len(ids) - ended])
    return Pair(tokenizer.decode(ids[:length]), rest, record, ended)


def own_answer(prompt: Pair | Chat) -> Completion:
    """Returns the data's own answer to a prompt: of a conversation the assistant's first that is to be learnt."""
    if isinstance(prompt, Pair):
        return Completion(prompt.completion, prompt.ended, 0)
    return Completion(prompt.messages[len(asked(prompt))][1], True, 0)


def in_words(prompt: Pair | Chat) -> str:
    """Returns a prompt as one text, for rewards that read it."""
    return prompt.prompt if isinstance(prompt, Pair) else "\n".join(content for _, content in asked(prompt))


class Lines:
    """Lines of text data from prompts and answers, and a count of what was left out, by reason.

    Args:
        keep_cut_off: whether answers that were cut off are kept. Such a line of text says so, and its end is not
            learnt; of a conversation they are left out all the same, since their end cannot be told apart.

    Attributes:
        lines: JSON texts.
        left_out: how many answers, or pairs, were left out, by reason.
    """

    def __init__(self, *, keep_cut_off: bool) -> None:
        self.lines: list[str] = []
        self.left_out: Counter[str] = Counter()
        self._keep_cut_off = keep_cut_off

    def usable(self, prompt: Pair | Chat, answers: Sequence[Completion]) -> list[Completion]:
        """Returns the answers from which something can be learnt."""
        found = []
        for answer in answers:
            kept = answer.ended or (self._keep_cut_off and isinstance(prompt, Pair))
            why = "empty" if not answer.text.strip() else None if kept else "cut off"
            if why is None:
                found.append(answer)
            else:
                self.left_out[why] += 1
        return found

    def add(self, prompt: Pair | Chat, answers: Sequence[Completion]) -> None:
        """Adds a line for each answer."""
        self.lines += [_line(prompt, {"completion": answer}) for answer in answers]

    def add_pairs(self, prompt: Pair | Chat, chosen: Sequence[Completion], rejected: Sequence[Completion]) -> None:
        """Adds a line for each two answers, in order; those without a counterpart are left out."""
        self.left_out["without a counterpart"] += abs(len(chosen) - len(rejected))
        for better, worse in zip(chosen, rejected):
            if better.text == worse.text:
                self.left_out["equal"] += 1
            else:
                self.lines.append(_line(prompt, dict(zip(SIDES, (better, worse)))))


def _line(prompt: Pair | Chat, answers: Mapping[str, Completion]) -> str:
    line: dict[str, Any] = {key: value for key, value in prompt.record.items() if key not in _TEXT}
    if isinstance(prompt, Pair):
        line["prompt"] = prompt.prompt
        line |= {name: answer.text for name, answer in answers.items()}
        prefixes = {name: "" if name == "completion" else f"{name}_" for name in answers}
        line |= {f"{prefixes[name]}ended": False for name, answer in answers.items() if not answer.ended}
        return json.dumps(line, ensure_ascii=False)
    messages = Chat(asked(prompt)).as_dicts()
    if "completion" in answers:
        messages.append({"role": "assistant", "content": answers["completion"].text})
        return json.dumps({**line, "messages": messages}, ensure_ascii=False)
    texts = {name: answer.text for name, answer in answers.items()}
    return json.dumps({**line, "messages": messages, **texts}, ensure_ascii=False)


def sorted_out(
    reward: Reward, prompts: Sequence[Pair | Chat], answers: Sequence[Sequence[Completion]], *, right: bool
) -> list[list[Completion]]:
    """Returns the answers with a positive reward, or those without.

    Args:
        reward: judges.
        prompts: the prompts.
        answers: answers to each.
        right: which to keep.

    Raises:
        RewardError: the reward fails on an answer.
        DataError: the data lacks a column that the reward reads.
    """
    reward.check([prompt.record for prompt in prompts])
    found = []
    for number, (prompt, group) in enumerate(zip(prompts, answers)):
        judged = [
            Judged(in_words(prompt), answer.text, prompt.record, number, answer.tokens, answer.ended)
            for answer in group
        ]
        values = score(reward, judged)
        found.append([answer for answer, value in zip(group, values) if (value > 0) == right])
    return found
