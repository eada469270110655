"""The recipe's `model:` of codec language models; a backbone gives it other defaults."""

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from sheen_cli import Section
from sheen_lm.convention import Convention
from sheen_lm.corpora import check_stage
from sheen_lm.families import FAMILIES, books, family
from sheen_lm.pretraining import Pretraining
from sheen_lm.vocabulary import Init


class Lora(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["attention", "all"] = "all"  # q and v projections, or all linear layers


class Options(Section):
    base: str  # a causal language model: a folder or a Hub id
    codec: str  # a folder or a Hub id
    codec_revision: str | None = None  # the Hub's commit; None: the newest when data is prepared
    codebooks: PositiveInt | None = None  # of a codec that has more; None: all
    codebook_size: PositiveInt = 2048  # of each codebook, in the family "books"
    family: str  # the convention's name; see `convention`
    convention: dict[str, Any] = Field({})  # fields that differ from the family's
    stage: Literal["sft", "pt"] = "sft"  # rows of text with speech, or windows of a corpus
    pretraining: Pretraining = Pretraining()  # the corpus of stage pt
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    lora: Lora | None = None  # None: all weights are trained, but for what `freeze` names
    freeze: tuple[str, ...] = ()  # patterns of the model's parameters
    rows_learning_rate: PositiveFloat | None = None  # of the tables; None: the recipe's
    new_rows: Init = "mean"  # how tokens that are added begin
    gradient_checkpointing: bool = False  # compute layers twice to hold less of them
    audio_only: bool = False  # choose among code tokens and the end alone, in the loss
    longest: PositiveInt = 4096  # tokens of a row
    too_long: Literal["drop", "trim"] = "drop"  # a longer one; trim: at a frame, without an end
    pack: bool = False  # rows of a batch behind each other in windows of `longest`
    clone: float = Field(0.0, ge=0, le=1)  # share of rows that go on from another of the speaker
    encode_seconds: PositiveFloat = 60  # of a batch of the codec on a GPU; a CPU takes single clips
    temperature: PositiveFloat = 0.8
    top_k: int = Field(0, ge=0)  # 0: all
    top_p: float = Field(0.95, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1)
    repetition_penalty: PositiveFloat = 1.1
    repetition_window: int = Field(0, ge=0)  # newest tokens that it regards; 0: all

    @field_validator("base", "codec")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        """A folder is meant wherever the recipe is read again: elsewhere it could be a Hub id."""
        folder = Path(value).expanduser()
        return str(folder.resolve()) if folder.is_dir() else value

    @model_validator(mode="after")
    def _fits(self) -> "Options":
        if self.family not in FAMILIES:
            raise ValueError(f"family: {self.family} is unknown; known are {', '.join(FAMILIES)}")
        try:
            self.written  # noqa: B018  (a convention that is none is refused here)
        except ValidationError as error:
            raise below("convention", error) from None
        check_stage(self.stage, self.pretraining.sources)
        if self.stage == "sft" and self.pretraining != Pretraining():
            raise ValueError("pretraining is for `stage: pt`; `stage: sft` reads rows")
        if self.stage == "pt":
            for name, off in (("audio_only", False), ("pack", False), ("clone", 0.0)):
                if getattr(self, name) != off:
                    raise ValueError(f"{name} has no meaning in `stage: pt`")
        if self.lora is not None and self.freeze:
            raise ValueError("freeze has no effect with lora, beside which all else is frozen")
        return self

    @property
    def written(self) -> Convention:
        """How sequences are written: the family's convention with the recipe's changes."""
        if self.family == "books" and self.codebooks is not None:
            known = books(self.codebooks, self.codebook_size).model_dump()
        else:
            known = family(self.family).model_dump()
        for name, value in self.convention.items():
            if name in ("specials", "codes"):
                if not isinstance(value, dict):
                    raise ValueError(f"convention: {name} is a mapping, not {value!r}")
                value = {**known[name], **value}
            known[name] = value
        return Convention(**known)


def below(key: str, error: ValidationError) -> ValidationError:
    """The same errors, with their places below a key."""
    found = [
        InitErrorDetails(
            type=PydanticCustomError(detail["type"], "{said}", {"said": detail["msg"]}),
            loc=(key, *detail["loc"]),
            input=detail["input"],
        )
        for detail in error.errors()
    ]
    return ValidationError.from_exception_data(key, found)
