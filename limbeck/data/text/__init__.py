"""Text for language models: examples, tokenizers, rows of tokens and batches of them."""

from limbeck.data.text.encoding import Encoded, encode_example
from limbeck.data.text.examples import Chat, Document, Example, Pair
from limbeck.data.text.load import load_text
from limbeck.data.text.loader import TextLoader
from limbeck.data.text.pairs import Preference
from limbeck.data.text.source import TextSource, texts
from limbeck.data.text.teacher_text import TeacherText
from limbeck.data.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Chat",
    "Document",
    "Encoded",
    "Example",
    "Pair",
    "Preference",
    "TeacherText",
    "TextLoader",
    "TextSource",
    "Tokenizer",
    "encode_example",
    "load_text",
    "load_tokenizer",
    "texts",
]
