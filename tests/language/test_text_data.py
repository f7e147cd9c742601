from __future__ import annotations

import gzip
import json
import lzma

import datasets
import numpy as np
import pytest

from language.corpus import CHATML, sequences, tokenizer
from limbeck.data.text import Chat, Document, Pair, TextLoader, TextSource, encode_example, load_text, load_tokenizer
from limbeck.data.text.packing import pack
from limbeck.errors import CheckpointError, DataError, RecipeError, UnknownNameError

TURNS = (("system", "Be kind."), ("user", "Hi é"), ("assistant", "Hello 東京"), ("user", "Bye"), ("assistant", "Ciao"))
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|end|>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}[gone]{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)


def learnt(encoded):
    return tokenizer().decode(encoded.ids[encoded.learn].tolist(), special=True)


def lines(path, records, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def test_of_a_conversation_the_assistants_turns_are_learnt_with_what_ends_them():
    encoded = encode_example(Chat(TURNS), tokenizer(CHATML))
    assert learnt(encoded) == "Hello 東京<|im_end|>Ciao<|im_end|>"
    text = tokenizer().decode(encoded.ids.tolist(), special=True)
    assert text == tokenizer(CHATML).render(Chat(TURNS).as_dicts())
    assert encoded.prompt == int(np.flatnonzero(encoded.learn)[0])


def test_a_template_that_marks_generation_is_believed():
    assert learnt(encode_example(Chat(TURNS), tokenizer(MARKED))) == "Hello 東京<|end|>Ciao<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    """Row 39: what the assistant wrote cannot be told."""
    with pytest.raises(DataError, match="writes earlier turns differently"):
        encode_example(Chat(TURNS), tokenizer(FORGETFUL), where="line 3")
    with pytest.raises(DataError, match="no chat template"):
        encode_example(Chat(TURNS), tokenizer())
    with pytest.raises(DataError, match="refuses this conversation"):
        encode_example(Chat(TURNS), tokenizer("{{ raise_exception('no system turns') }}"))


def test_prompt_and_completion_are_tokenized_apart_and_end():
    encoded = encode_example(Pair("ab", "cd"), tokenizer())
    assert encoded.ids.tolist() == [97, 98, 99, 100, 256]
    assert encoded.learn.tolist() == [False, False, True, True, True]
    assert encode_example(Document("ab"), tokenizer()).targets == 2


def test_documents_are_cut_into_windows_that_predict_every_token_once(tmp_path):
    text = "".join(chr(97 + n % 26) for n in range(103))
    (tmp_path / "a.txt").write_text(text)
    source = load_text({"name": "text", "path": str(tmp_path / "a.txt")}, tokenizer(), context=10, test=0.0)
    predicted = [int(i) for s in source.sequences for i in s.ids[1:]]
    assert bytes(predicted[:-1]).decode() == text[1:]
    assert predicted[-1] == 256
    assert all(len(s) <= 11 for s in source.sequences)
    batch = next(TextLoader(source, batch_size=4, shuffle=False).epoch(0))
    assert batch["mask"][:, :10].all()


def test_held_out_windows_are_the_last_ones_and_other_samples_go_by_content(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 50 + "y" * 50)
    spec = {"name": "text", "path": str(tmp_path / "a.txt")}
    train, test = (load_text(spec, tokenizer(), context=10, split=s, test=0.3) for s in ("train", "test"))
    assert {chr(i) for s in test.sequences for i in s.ids if i < 256} == {"y"}
    assert len(train) + len(test) == 10
    pairs = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(200)]
    path = lines(tmp_path / "a.jsonl", pairs + pairs)
    found = {
        s: load_text({"name": "jsonl", "path": str(path)}, tokenizer(), split=s, test=0.2, validation=0.2)
        for s in ("train", "test", "validation")
    }
    keys = {s: set(source.sequence_keys.tolist()) for s, source in found.items()}
    assert sum(map(len, keys.values())) == 200
    assert all(len(k) > 15 for k in keys.values())
    assert len(found["train"]) == 2 * len(keys["train"])


@pytest.mark.parametrize(("ending", "opener"), [("", open), (".xz", lzma.open), (".gz", gzip.open)])
def test_jsonl_may_be_compressed_and_call_things_its_own_way(tmp_path, ending, opener):
    path = lines(tmp_path / f"a.jsonl{ending}", [{"q": "one", "a": "two", "n": 3}], opener)
    spec = {"name": "jsonl", "path": str(path), "columns": {"prompt": "q", "completion": "a"}}
    source = load_text(spec, tokenizer(), test=0.0)
    assert learnt(source.sequences[0]) == "two<|end|>"


def test_a_folder_gives_its_splits(tmp_path):
    lines(tmp_path / "train.jsonl", [{"text": "a" * 9}])
    lines(tmp_path / "test.jsonl", [{"text": "b" * 7}])
    spec = {"name": "jsonl", "path": str(tmp_path)}
    assert [len(load_text(spec, tokenizer(), split=s).sequences[0]) for s in ("train", "test")] == [10, 8]


def test_hugging_face_data_sets(tmp_path):
    rows = {"prompt": [f"p{n}" for n in range(40)], "completion": ["c"] * 40}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "one"))
    parts = [
        load_text({"name": "hf", "path": str(tmp_path / "one")}, tokenizer(), split=s, test=0.25)
        for s in ("train", "test")
    ]
    assert sum(map(len, parts)) == 40
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]]
    both = {s: datasets.Dataset.from_dict({"messages": chats * n}) for s, n in (("train", 2), ("test", 3))}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "two"))
    test = load_text({"name": "hf", "path": str(tmp_path / "two")}, tokenizer(CHATML), split="test")
    assert len(test) == 3
    assert learnt(test.sequences[0]) == "Yo<|im_end|>"
    with pytest.raises(DataError, match="cannot load"):
        load_text({"name": "hf", "path": str(tmp_path / "none"), "download": False}, tokenizer())


def test_what_is_too_long_is_cut_dropped_or_refused(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", [{"prompt": "p" * 4, "completion": "c" * 20}, {"prompt": "p", "completion": "c"}]
    )
    spec = {"name": "jsonl", "path": str(path)}
    cut = load_text(spec, tokenizer(), context=8, test=0.0)
    assert learnt(cut.sequences[0]) == "c" * 5
    assert "cut to 8 tokens" in cut.notes[0]
    assert len(load_text(spec, tokenizer(), context=8, too_long="drop", test=0.0)) == 1
    with pytest.raises(DataError, match="longer than the context of 8"):
        load_text(spec, tokenizer(), context=8, too_long="error", test=0.0)
    hopeless = lines(tmp_path / "b.jsonl", [{"prompt": "p" * 9, "completion": "c"}])
    with pytest.raises(DataError, match="no sequence"):
        load_text({"name": "jsonl", "path": str(hopeless)}, tokenizer(), context=3, test=0.0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2 of a.jsonl is not JSON"),
        ("[1]", "should be a JSON object"),
        ('{"foo": 1}', "`messages`"),
        ('{"prompt": "x", "completion": ""}', "completion is empty"),
        ('{"prompt": 3, "completion": "x"}', "'prompt' should be text"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "message 0"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "nothing to learn"),
        ('{"messages": "x"}', "list of"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=said):
        load_text({"name": "jsonl", "path": str(tmp_path / "a.jsonl")}, tokenizer())


def test_all_lines_without_an_answer_are_counted_and_the_first_are_named(tmp_path):
    answers = ["" if n % 2 else "yes" for n in range(60)]
    path = lines(tmp_path / "a.jsonl", [{"prompt": "x", "completion": answer} for answer in answers])
    with pytest.raises(DataError) as raised:
        load_text({"name": "jsonl", "path": str(path)}, tokenizer())
    said = str(raised.value)
    assert said.startswith("line 2 of a.jsonl: the completion is empty")
    assert said.endswith("So it is in 30 lines: 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 20 more")
    one = lines(tmp_path / "b.jsonl", [{"prompt": "x", "completion": answer} for answer in ("yes", "")])
    with pytest.raises(DataError, match=r"^line 2 of b\.jsonl: the completion is empty.*remove the line$"):
        load_text({"name": "jsonl", "path": str(one)}, tokenizer())


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UnknownNameError, match="persuasion"):
        load_text({"name": "persuation"}, tokenizer())
    with pytest.raises(DataError, match="cannot be read"):
        load_text({"name": "text", "path": str(tmp_path / "none.txt")}, tokenizer())
    with pytest.raises(DataError, match="no text file"):
        load_text({"name": "text", "path": str(tmp_path)}, tokenizer())
    with pytest.raises(RecipeError, match=r"unknown key 'columms'\. Did you mean 'columns'"):
        load_text({"name": "jsonl", "path": "x", "columms": {}}, tokenizer())
    with pytest.raises(RecipeError, match=r"data.options: unknown key 'contxt'\. Did you mean 'context'"):
        load_text({"name": "persuasion", "contxt": 4}, tokenizer())
    with pytest.raises(UnknownNameError, match="smollm2"):
        load_tokenizer("smollm3")
    with pytest.raises(CheckpointError, match="no folder"):
        load_tokenizer("hf:./nowhere")
    (tmp_path / "x.gguf").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"x\.gguf|cannot be loaded"):
        load_tokenizer(f"gguf:{tmp_path / 'x.gguf'}")


def test_rows_are_packed_in_order_and_none_overflows():
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    rows = pack(lengths, 64)
    assert sorted(n for row in rows for n in row) == list(range(500))
    filled = [sum(lengths[n] for n in row) for row in rows]
    assert max(filled) <= 64
    assert sum(filled) / (64 * len(rows)) > 0.95


def test_the_order_depends_on_seed_and_epoch_alone_and_ranks_share_a_batch():
    source = TextSource("r", sequences(11), tokenizer(), context=32)

    def order(**options):
        return [batch["index"].tolist() for batch in TextLoader(source, batch_size=4, **options).epoch(3)]

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    ranks = [order(seed=1, rank=r, world_size=2) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks)] == order(seed=1)
    later = TextLoader(source, batch_size=4, seed=1).epoch(3, start_step=2)
    assert [b["index"].tolist() for b in later] == order(seed=1)[2:]
    with pytest.raises(RecipeError, match="divided over 4"):
        TextLoader(source, batch_size=4, world_size=4)


def test_fingerprints_tell_tokenizers_and_templates_apart():
    """Row 13: the same size says nothing."""
    one, two = tokenizer(CHATML), tokenizer(MARKED)
    assert one.fingerprint == two.fingerprint
    assert one.template_fingerprint != two.template_fingerprint
    other = tokenizer()
    other.backend.eos_token = other.backend.convert_ids_to_tokens(3)
    assert other.vocabulary == one.vocabulary
    assert other.fingerprint != one.fingerprint
    padded = tokenizer()
    padded.backend.pad_token = padded.backend.eos_token
    padded.backend("x", padding="max_length", max_length=9, truncation=True)
    assert padded.fingerprint == one.fingerprint
