"""What language models write: batched generation whose random numbers depend on the sample alone."""

from limbeck.generation.ends import end_tokens
from limbeck.generation.loop import Draws, Generated, Prompts, generate
from limbeck.generation.policies import Alone, Mixed, Policy, Speculative
from limbeck.generation.sampling import Sampling

__all__ = [
    "Alone",
    "Draws",
    "Generated",
    "Mixed",
    "Policy",
    "Prompts",
    "Sampling",
    "Speculative",
    "end_tokens",
    "generate",
]
