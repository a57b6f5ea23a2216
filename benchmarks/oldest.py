"""The oldest torch that is allowed: an environment of its own, and in it the tests of what hangs on torch.

    python benchmarks/oldest.py [--torch 2.6] [--torchvision 0.21] [--folder FOLDER] [--write]

Tests of the method, of model files, of the passes and of the commands; without what needs extras.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from measuring import Log, command_line, write_section

ROOT = Path(__file__).parents[1]

TESTS = ("tests/unit/method", "tests/unit/inference", "tests/unit/models", "tests/functional/test_predict.py")
PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "jsonschema", "pandas", f"{ROOT}[parquet]")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torch", default="2.6")
    parser.add_argument("--torchvision", default="0.21")
    parser.add_argument("--folder", type=Path, help="for the environment; kept, and used again where it is there")
    parser.add_argument("--write", action="store_true", help="put the result into RESULTS.md")
    options = parser.parse_args()
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet"]
            # Both together: a torchvision belongs to one torch.
            subprocess.run([*pip, f"torch=={options.torch}.*", f"torchvision=={options.torchvision}.*"], check=True)
            subprocess.run([*pip, *PACKAGES], check=True)
        tests = [str(python), "-m", "pytest", "-q", "-n", "auto", "-m", "not skin7 and not ray", *TESTS]
        ended = subprocess.run(
            tests, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    log = Log()
    log.say(
        f"`{command_line((options.folder, 'FOLDER'))}`",
        "",
        f"torch {options.torch}, torchvision {options.torchvision}:",
    )
    log.say(f"{ended.stdout.splitlines()[-1].strip('= ')}.", "", *(f"- {line}" for line in lines))
    if options.write:
        write_section("oldest", "The oldest torch that is allowed", log.lines)


if __name__ == "__main__":
    main()
