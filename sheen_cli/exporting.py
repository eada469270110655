"""From a checkpoint to a folder for other tools: what kind, where to, and that nothing but an
earlier export is ever replaced. The backbone's hook does the rest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sheen_cli import __version__, backbones, checkpoints, console
from sheen_cli.errors import SheenError
from sheen_cli.files import FORMAT, building, read_json, write_json
from sheen_cli.recipe import did_you_mean, override, read

MANIFEST = "export.json"  # says what sheen wrote, and so what it may replace


def export(
    checkpoint: Path, kind: str, out: Path, overwrite: bool = False, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Write an export of a checkpoint, or of a run's best, to the folder `out`; what was written.

    Raises SheenError where the backbone has no such kind, or `out` holds anything that is not to be
    replaced.
    """
    source = checkpoints.resolve(checkpoint)
    values = override(read(source / "recipe.yaml"), settings)
    recipe, backbone = backbones.described(values, f"{source}/recipe.yaml")
    check_kind(backbone, kind)
    check_out(out, overwrite)
    place = out.resolve()
    if source in (place, *place.parents):
        raise SheenError(f"-o {out} lies in the checkpoint itself, and would go with it")
    console.say(f"exporting {source} as {kind}")
    with building(place) as part:
        said = backbone.hook.export(recipe=recipe, checkpoint=source, kind=kind, folder=part)
        checkpoints.share(part)
        files = listing(part)
        if not files:
            raise RuntimeError(f"hook export() of backbone '{backbone.name}' wrote nothing")
        facts = {"format": FORMAT, "sheen": __version__, "backbone": backbone.name, "kind": kind}
        write_json(part / MANIFEST, {**facts, "files": files})
        use = [line.replace(str(part), str(out)) for line in (said or "").splitlines()]
    return {
        "folder": str(out), "checkpoint": str(source), "backbone": backbone.name, "kind": kind,
        "files": files, "bytes": sum(files.values()), "use": use,
    }  # fmt: skip


def check_kind(backbone: backbones.Backbone, kind: str) -> None:
    kinds = backbone.spec.exports
    if not kinds:
        raise SheenError(
            f"backbone '{backbone.name}' has no export: its checkpoints are used as they are"
        )
    if kind not in kinds:
        raise SheenError(
            f"--as {kind}: backbone '{backbone.name}' has no such kind{did_you_mean(kind, kinds)}; "
            f"it has {', '.join(kinds)}"
        )


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a place that holds anything, and with `overwrite` anything but an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise SheenError(f"-o {out} is there already and is no export of sheen; choose another")
    if not overwrite:
        raise SheenError(f"-o {out} holds an export; add --overwrite, or choose another folder")
    known = {*read_json(out / MANIFEST)["files"], MANIFEST}
    if others := sorted(set(listing(out)) - known):
        raise SheenError(
            f"{out / others[0]} was not written by sheen: move it, or choose another -o"
        )


def listing(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every file below a folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in files}


def lines(facts: dict[str, Any]) -> list[str]:
    """What was written, for people."""
    files = [(size_of(size), f"{facts['folder']}/{name}") for name, size in facts["files"].items()]
    total = f"{facts['kind']}, {len(files)} files, {size_of(facts['bytes'])}"
    return [*console.columns(files), total, *facts["use"]]


def size_of(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
