"""``python -m imbalance_perturb``: the same as ``imbperturb``, whose entry point this is."""

import os
import sys


def run() -> None:
    """Run the command line, with nothing taken for a module that lies in the current folder, here or in a child."""
    leave_current_folder()
    # Python's own switch, for the processes that a command starts.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Only now, with the folder out of the way.
    from imbalance_perturb.cli.app import main

    main()


def leave_current_folder() -> None:
    """Take the current folder out of where modules are looked for, unless this package was found there.

    ``python -m`` puts it first, an empty entry of PYTHONPATH somewhere: a ``torch.py`` among someone's images would be
    imported for torch.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib might be imported from there
    except OSError:  # a folder that is no more
        here = ""
    package = f"{here}{os.sep}imbalance_perturb{os.sep}__main__.py"
    if __file__ != package:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


if __name__ == "__main__":
    run()
