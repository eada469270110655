"""Adapters on the layers and vectors of new tokens, how they are saved, and at which rates what is
trained is trained.

PEFT keeps new tokens' vectors in tables of their own (`trainable_token_indices`), one where input
and output table are tied. We let it attach, name and save them, and do the arithmetic ourselves:
its own forward pass copies the whole table for every batch, and its backward pass fills a gradient
of that size.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sheen_cli import Group, SheenError
from sheen_lm import trained
from sheen_lm.model import CodesLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERY_VALUE = r".*\.(?:q_proj|v_proj)"
SAME = ("r", "lora_alpha", "target_modules", "trainable_token_indices")


def linear(lm: Any) -> str:
    """A pattern for all linear modules of the layers, whatever the architecture calls them."""
    own = {id(lm.get_output_embeddings())}
    names = {name.rpartition(".")[2] for name, module in lm.named_modules()
             if isinstance(module, nn.Linear) and id(module) not in own}  # fmt: skip
    if not names:  # GPT-2 has layers of a class of its own
        raise SheenError(
            f"model.lora: {type(lm).__name__} has no linear modules; set model.lora=null"
        )
    return rf".*\.(?:{'|'.join(map(re.escape, sorted(names)))})"


def attach(
    model: CodesLM, rank: int, alpha: float, dropout: float, pattern: str, rows: Sequence[int]
) -> list[str]:
    """Put adapters on the modules whose whole name the regular expression matches, give the tokens
    `rows` vectors of their own, and freeze the rest; the names of all that is trained. Raises
    SheenError for a pattern that no linear module matches.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    fits = [name for name, module in model.lm.named_modules()
            if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)]  # fmt: skip
    if not fits:
        raise SheenError(f"model.lora: no linear module of the base is named '{pattern}'")
    ours = sorted(map(int, rows))
    tables = [name_of(model.lm, model.lm.get_input_embeddings())]
    if not model.tied:
        tables.append(name_of(model.lm, model.lm.get_output_embeddings()))
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern,
        trainable_token_indices=dict.fromkeys(tables, ours) if ours else None,
        task_type="CAUSAL_LM", revision=getattr(model.lm.config, "_commit_hash", None),
    )  # fmt: skip
    model.adapter = [get_peft_model(model.lm, config)]
    model.own_rows(tuple(ours))
    for module in model.lm.modules():
        if isinstance(module, LoraLayer):  # its cast of the input to float32 is undone by autocast
            module.cast_input_dtype_enabled = False
    return trained.masters(model.lm)


def name_of(lm: nn.Module, wanted: nn.Module) -> str:
    names: Iterator[str] = (name for name, module in lm.named_modules() if module is wanted)
    return next(names)


def groups(model: CodesLM, rows_rate: float | None = None) -> list[Group]:
    """What is trained; tables and new tokens' vectors at a rate of their own, and no decay of them
    or of vectors.
    """
    tables = {id(model.input_table), id(model.output_table)}

    def settings(name: str, parameter: nn.Parameter) -> tuple[float | None, float | None]:
        table = id(parameter) in tables or "trainable_tokens_delta" in name
        return rows_rate if table else None, 0.0 if table or parameter.ndim < 2 else None

    return trained.groups(model.lm, settings)


# --- files ----------------------------------------------------------------------------------------


def tensors(model: CodesLM) -> dict[str, Tensor]:
    """All trained tensors under PEFT's names; they share the model's memory."""
    from peft import get_peft_model_state_dict

    (adapter,) = model.adapter
    found: dict[str, Tensor] = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    return found


def save_adapter(model: CodesLM, folder: Path) -> None:
    """PEFT's own format, which `PeftModel.from_pretrained` loads on a base whose tables have as
    many rows; the tokenizer beside it.
    """
    from safetensors.torch import save_file

    (adapter,) = model.adapter
    state = {name: value.detach().cpu().contiguous() for name, value in tensors(model).items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    values = settings(adapter) | {"inference_mode": True}
    text = json.dumps(values, indent=2, ensure_ascii=False, default=sorted)
    (folder / CONFIG).write_text(f"{text}\n", "utf-8")
    model.ids.tokenizer.save_pretrained(folder)


def settings(adapter: Any) -> dict[str, Any]:
    found: dict[str, Any] = adapter.peft_config["default"].to_dict()
    return json.loads(json.dumps(found, default=sorted))  # type: ignore[no-any-return]


def revision(folder: Path) -> str | None:
    """The Hub's commit of the base that a saved adapter was trained on, if it is of the Hub."""
    found: str | None = json.loads((folder / CONFIG).read_text("utf-8")).get("revision")
    return found


def load_adapter(model: CodesLM, folder: Path) -> None:
    """Fill the attached adapter from a folder. Raises SheenError where that is of other settings,
    or lacks a tensor or has one too many.
    """
    from safetensors.torch import load_file

    (adapter,) = model.adapter
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise SheenError(f"{folder} holds no adapter: {CONFIG} and {WEIGHTS} are needed")
    saved, own = json.loads(path.read_text("utf-8")), settings(adapter)
    if wrong := [name for name in SAME if saved.get(name) != own[name]]:
        raise SheenError(f"{path} does not fit the recipe: it has another {', '.join(wrong)}")
    state, wanted = load_file(folder / WEIGHTS), tensors(model)
    for what, names in (("lacks", wanted.keys() - state), ("has unknown", state.keys() - wanted)):
        if names:
            raise SheenError(f"{folder / WEIGHTS} does not fit the recipe: it {what} {min(names)}")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise SheenError(
                f"{folder / WEIGHTS} does not fit the recipe: {name} is {tuple(value.shape)}, "
                f"not {tuple(wanted[name].shape)}"
            )
    with torch.no_grad():
        for name, value in state.items():
            wanted[name].copy_(value)
