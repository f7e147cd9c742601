"""Text that the roles of a recipe write: what a recipe says about it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from limbeck.data.text.source import RawText, Split, text_data
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, Fraction, Positive, WholeNumber

GENERATED = "generated"
DATA = "data"
"""In place of a role: the answers that the data has itself."""


class GeneratedSpec(BaseModel):
    """Who writes what after which prompts: the options of ``data: {name: generated}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    of: str | dict[str, Any] = Field(description="data whose prompts are used: its name, or name, path and options")
    role: str = Field("teacher", description="the role that writes")
    chosen: str | None = Field(None, description="for pairs: the role whose answers are preferred, or `data`")
    rejected: str | None = Field(None, description="for pairs: the role whose answers are not, or `data`")
    reward: Any = Field(
        None, description="keep answers with a positive reward; of `rejected`, and of pairs by one role, the others"
    )
    samples: Count = Field(1, description="answers to each prompt")
    max_new_tokens: Count = Field(128, description="longest answer")
    temperature: Positive = Field(1.0, description="divides logits for drawing")
    top_k: Count | None = Field(None, description="tokens that can be drawn; all when absent")
    top_p: Fraction = Field(1.0, description="probability that these have together at least")
    greedy: bool = Field(False, description="take the likeliest token")
    prompt_tokens: Count | None = Field(
        None, description="first tokens of running text that are taken for a prompt, where the data has none"
    )
    cut_off: Literal["keep", "drop"] | None = Field(
        None, description="answers that were cut off; kept after running text, dropped otherwise when absent"
    )
    rows: Count = Field(16, description="sequences written at a time")
    seed: WholeNumber | None = Field(None, description="seed of the sampling; the recipe's when absent")
    folder: str = Field("runs/generated", description="where the text is kept, for this and later runs")

    @model_validator(mode="after")
    def _both_sides(self) -> GeneratedSpec:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("pairs need both `chosen` and `rejected`, each a role or `data`")
        if self.greedy and self.samples > 1:
            raise ValueError("greedy answers to a prompt are all the same; set samples to 1")
        if self.chosen is not None and self.chosen == self.rejected and self.reward is None:
            raise ValueError(f"both answers come from '{self.chosen}'; a reward has to tell them apart")
        return self

    @property
    def pairs(self) -> bool:
        """Whether pairs of answers are written."""
        return self.chosen is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """Who answers, in the order in which lines name them."""
        return (self.chosen, self.rejected) if self.chosen and self.rejected else (self.role,)

    @property
    def writers(self) -> tuple[str, ...]:
        """The roles that write."""
        return tuple(dict.fromkeys(source for source in self.sources if source != DATA))


@text_data(GENERATED, title="what the roles of a recipe write after the prompts of other data", licence="")
def generated(*, split: Split) -> RawText:
    """Says that this text needs a recipe.

    Raises:
        RecipeError: always.
    """
    raise RecipeError("the roles of a recipe write `generated` text; name it in the `data` section of a recipe")
