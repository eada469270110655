"""From a checkpoint to a folder that plain transformers, or PEFT, loads."""

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from sheen_cli import SheenError
from sheen_lm import adapters
from sheen_lm.model import CodesLM, save_whole

OURS = ("manifest.json", "recipe.yaml")  # of a checkpoint; the rest is transformers' or PEFT's
NEAR = 1e-3  # of the largest logit, by which merged weights may miss the adapter's


def write(load: Callable[[], CodesLM], checkpoint: Path, kind: str, folder: Path) -> str:
    """Fill `folder` from a checkpoint, which `load` loads in float32; how to use it. Raises
    SheenError for a kind that it cannot be.
    """
    adapted = (checkpoint / adapters.CONFIG).is_file()
    if kind == "adapter" and not adapted:
        raise SheenError(f"{checkpoint} is a whole model, without an adapter; take --as merged")
    if kind == "merged" and adapted:
        model = load()
        merge(model)
        save_whole(model, folder)
    else:
        for path in checkpoint.iterdir():
            if path.is_file() and path.name not in OURS:
                copyfile(path, folder / path.name)
    if kind == "merged":
        return f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    rows = len(load().input_table)
    return f"base.resize_token_embeddings({rows})\nPeftModel.from_pretrained(base, {str(folder)!r})"


@torch.no_grad()
def merge(model: CodesLM) -> None:
    """Put adapters into the weights, which get the dtype of the base's files. Raises SheenError
    where the model then says something else.
    """
    probe, (adapter,) = probed(model), model.adapter
    wanted = model.states(probe) @ whole_table(model).T
    model.lm, model.adapter = adapter.merge_and_unload(), []
    model.own_rows(())
    found = model.lm(input_ids=probe, use_cache=False).logits
    if not torch.allclose(found, wanted, rtol=0, atol=NEAR * float(wanted.abs().max())):
        raise SheenError("the merged weights do not say what the adapter says; take --as adapter")
    model.lm.to(dtype_of(model.lm.config))


def dtype_of(config: Any) -> torch.dtype:
    """That of the files which a model with this config was loaded from."""
    from transformers import AutoConfig

    files = AutoConfig.from_pretrained(config.name_or_path, revision=config._commit_hash)
    return files.dtype if isinstance(files.dtype, torch.dtype) else torch.float32


def probed(model: CodesLM) -> torch.Tensor:
    """A token of each kind, (1, n): what a merge is tried on."""
    codes = [int(row[row >= 0][0]) for row in model.ids.codes]
    return torch.tensor([[*model.ids.roles.values(), *codes]], device=model.device)


def whole_table(model: CodesLM) -> torch.Tensor:
    """The output table (rows, hidden) with the vectors of our own rows in it."""
    table = model.output_table.detach().clone()
    if model.ours:
        table[list(model.ours)] = model.head().weights[1].detach().to(table.dtype)
    return table
