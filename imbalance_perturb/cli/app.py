"""The command line: its commands, each in a module of its own, and how it ends."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer import Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.compare import compare
from imbalance_perturb.cli.counts import counts
from imbalance_perturb.cli.demo import demo
from imbalance_perturb.cli.evaluate import evaluate
from imbalance_perturb.cli.export import export
from imbalance_perturb.cli.inspect import init, inspect
from imbalance_perturb.cli.merge import merge
from imbalance_perturb.cli.options import FAILED, WRONG_USAGE
from imbalance_perturb.cli.predict import predict
from imbalance_perturb.cli.shares import shares
from imbalance_perturb.cli.tune import tune_eps
from imbalance_perturb.cli.verify import verify
from imbalance_perturb.errors import ImbperturbError, SettingsError
from imbalance_perturb.inference.allocator import keep_freed_memory

# Its own base is what every wrong use of options and arguments has in common, and has no public name.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="imbperturb",
    help="Correct a classifier trained on imbalanced data, after training, by perturbing its input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; a user's mistake ends in one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here so that it may stand anywhere; the callback only documents it.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    keep_freed_memory()
    terminal.prepare()
    try:
        # Typer alone would show what is wrong with the arguments as they were given, terminal commands and all.
        code = app(args=arguments, prog_name="imbperturb", standalone_mode=False)
    except _UsageError as error:
        _fail_usage(error)
    except Exception as error:
        if debug:
            sys.excepthook = terminal.show_traceback
            raise
        if isinstance(error, ImbperturbError):
            _fail(str(error), WRONG_USAGE if isinstance(error, SettingsError) else FAILED)
        # The last resort: one line instead of a traceback.
        what = f"{type(error).__name__}: {error}"
        _fail(f"{what} (this is a fault of imbperturb, not of yours; --debug shows where)", FAILED)
    raise SystemExit(code or 0)


def _fail(message: str, code: int) -> NoReturn:
    terminal.say(f"imbperturb: error: {message}")
    raise SystemExit(code)


def _fail_usage(error: Any) -> NoReturn:
    message = error.format_message()
    if not message:  # no arguments at all: the help has been shown
        raise SystemExit(WRONG_USAGE)
    command = "imbperturb" if error.ctx is None else error.ctx.command_path
    _fail(f"{message.rstrip('.')} ({command} --help says more)", WRONG_USAGE)


def _show_version(wanted: bool) -> None:
    if wanted:
        import imbalance_perturb

        terminal.show(imbalance_perturb.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass


for command in (predict, merge, verify, evaluate, tune_eps, compare, shares, inspect, init, export, counts, demo):
    app.command()(command)
