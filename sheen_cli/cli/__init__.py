"""The command line: one short function a command, those of one subject in a file. Heavy imports
live inside the functions, so that help is quick.
"""

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sheen_cli import __version__, console
from sheen_cli.cli import data, doctor, learn, plugins, recipes, share, synth
from sheen_cli.errors import DISK, SheenError


class Commands(TyperGroup):
    """The group that turns a SheenError of any command into one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SheenError as error:
            console.error(f"error: {error}")
            ctx.exit(error.code)
        except BrokenPipeError:
            raise  # the reader of our output has seen enough; typer ends quietly
        except OSError as error:  # a full disk, a folder where a file should be, no permission
            console.error(f"error: {error.filename or ''}: {error.strerror or error}")
            ctx.exit(5 if error.errno in DISK else 2)
        except KeyboardInterrupt:
            more = " (--resume goes on from the run's last checkpoint)"
            training = ctx.invoked_subcommand == "train"
            console.say(f"stopped; what was finished is kept{more if training else ''}")
            ctx.exit(130)


app = typer.Typer(
    cls=Commands,
    help="Fine-tune speech language models: prepare data, train, speak, look inside.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# in the order of help
for command in (
    learn.demo,
    data.prepare,
    data.info,
    learn.train,
    synth.synth,
    share.export,
    share.push,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")


def version(wanted: bool) -> None:
    if wanted:
        console.result(f"sheen {__version__}")
        raise typer.Exit


@app.callback()
def top(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    large_pages()
    bars()


def bars() -> None:
    """Have the Hub's client draw its bars, also one for what is here already, on a terminal alone;
    it heeds the variable where it is set before its import.
    """
    if not console.fancy():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def large_pages() -> None:
    """Have PyTorch ask for memory in pages of 2 MB, as it does where this variable is set before
    its import: a training on a CPU spends up to a tenth of its time on getting pages of 4 KB.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a code page that lacks a letter must not stop us
            stream.reconfigure(errors="backslashreplace")
    app()
