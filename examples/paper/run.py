"""Train, correct and score: the cells of Table 2, one after the other. `python -m examples.paper.run --help`.

What is done is not done again, a run that was cut off goes on, and several may work side by side on one --out.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer

from examples.paper.datasets import LOADERS, DataSet, octmnist, skin7, xray6
from examples.paper.estimates import list_left
from examples.paper.experiments import Experiment
from examples.paper.networks import BACKBONES
from examples.paper.settings import Machine, Schedule, Settings
from examples.paper.trainings import TRAININGS

METHODS = "none,perturb,la,perturb+la,tau-norm,offsets,p2p,random-sign,minus-eps"
# Section 3.1.
RATES = {"mobilenet_v2": 0.01, "resnet50": 0.001, "densenet169": 0.001}


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data set: docs/paper.md says what it holds.")],
    data_set: Annotated[str, typer.Option(help=" | ".join(LOADERS) + ".")] = "skin7",
    official: Annotated[
        Path | None, typer.Option(help="Folder of Skin7's official test set; scored, never tuned on.")
    ] = None,
    download: Annotated[bool, typer.Option(help="Let medmnist download OCTMNIST into --data.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs"),
    backbone: Annotated[str, typer.Option(help="Comma-separated, of " + ", ".join(BACKBONES) + ".")] = ",".join(
        BACKBONES
    ),
    training: Annotated[str, typer.Option(help="Comma-separated, of " + ", ".join(TRAININGS) + ".")] = ",".join(
        TRAININGS
    ),
    fold: Annotated[
        str, typer.Option(help="Comma-separated, 0 to 4. (default: all; the official split is fold 0)")
    ] = "",
    folds: Annotated[
        str, typer.Option(help="group (lesion, patient) keeps like images in one fold; image is the paper's.")
    ] = "group",
    validation_parts: Annotated[
        int, typer.Option(help="One of so many parts of the training folds is for tune-eps.")
    ] = 8,
    pretrained: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a file of the backbone's tensors.")
    ] = "imagenet",
    freeze: Annotated[int, typer.Option(min=0, help="First blocks of the backbone that stay as pre-trained.")] = 0,
    size: Annotated[int | None, typer.Option(help="Pixels of the model's input. (default: the paper's)")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int | None, typer.Option(help="(default: the paper's: 32, OCTMNIST 128)")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="(default: the paper's: 0.01 for MobileNetV2, else 0.001)")
    ] = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: Annotated[float, typer.Option(help="Epochs of linear warm-up.")] = 1.0,
    decay: Annotated[float, typer.Option(help="What the learning rate is multiplied by.")] = 0.1,
    decay_every: Annotated[
        float | None, typer.Option(help="Epochs. (default: a quarter of all, the paper's 50 of 200)")
    ] = None,
    defer: Annotated[float, typer.Option(help="Share of the epochs before the second stage of DRS and LDAM.")] = 0.8,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="Of the training: fp32 | bf16 (autocast).")] = "fp32",
    channels_last: bool = False,
    device: Annotated[str, typer.Option(help="cpu | cuda[:N]. (default: cuda where there is one)")] = "",
    threads: Annotated[int, typer.Option(help="Of this process. (default: as many as cores)")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read training images; 0 keeps them in memory.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many images of each part: a trial of the path.")] = None,
    methods: Annotated[
        str, typer.Option(help="Of compare, comma-separated; its controls cost half of its time.")
    ] = METHODS,
    figure3: Annotated[
        str, typer.Option(help="Trainings for which eps and T are swept on the test part, as in Figure 3.")
    ] = "",
    list_only: Annotated[
        bool, typer.Option("--list", help="Show what is left and how long it will take here; do nothing.")
    ] = False,
) -> None:
    """Train the networks of Table 2 and score them, plain and corrected."""
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the commands, too
    (folds,) = split_words("--folds", folds, ("group", "image"))
    (precision,) = split_words("--precision", precision, ("fp32", "bf16"))
    weights = Pretrained.of(pretrained)
    opened = open_data(data_set, data, official, out, download)
    swept = split_words("--figure3", figure3, TRAININGS)
    numbers = split_words("--fold", fold or "0,1,2,3,4" if opened.folded else "0", tuple("01234"))
    experiments = []
    for number, name, how in product(
        numbers, split_words("--backbone", backbone, BACKBONES), split_words("--training", training, TRAININGS)
    ):
        schedule = Schedule(
            epochs=epochs,
            batch_size=batch_size or opened.batch_size,
            learning_rate=learning_rate or RATES[name],
            momentum=momentum,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            decay_every=decay_every or epochs / 4,
            defer=defer,
            seed=seed,
        )
        settings = Settings(
            data=opened.name,
            backbone=name,
            training=how,
            fold=int(number),
            folds=folds,
            size=size or opened.size,
            pretrained=weights.name,
            freeze=freeze,
            validation_parts=validation_parts,
            limit=limit,
            precision=precision,
            methods=methods,
            schedule=schedule,
        )
        experiments.append(Experiment(settings, opened, out, weights.source, how in swept))
    machine = Machine(device or ("cuda" if torch.cuda.is_available() else "cpu"), channels_last, workers)
    if list_only:
        list_left(experiments, machine, typer.echo)
        return
    for later, experiment in product((False, True), experiments):
        label = str(experiment.folder.relative_to(out))
        if experiment.left():
            experiment.run(machine, lambda text, label=label: typer.echo(f"{label}: {text}", err=True), later)
        elif not later:
            typer.echo(f"{label}: done before", err=True)


def open_data(name: str, data: Path, official: Path | None, out: Path, download: bool) -> DataSet:
    if name == "skin7":
        return skin7(data, official)
    if name == "xray6":
        return xray6(data)
    if name == "octmnist":
        return octmnist(data, out / "octmnist-images", download)
    raise typer.BadParameter(f"{name!r} is none of {', '.join(LOADERS)}", param_hint="--data-set")


def split_words(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Comma-separated words, each of which must be known."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise typer.BadParameter(f"{word!r} is none of {', '.join(known)}", param_hint=option)
    return words


@dataclass(frozen=True)
class Pretrained:
    """Where the first weights come from; `name` says a file by its SHA-256, wherever it lies."""

    name: str
    source: str

    @classmethod
    def of(cls, text: str) -> Pretrained:
        """`imagenet`, `none`, or a file that must be there."""
        if text in ("imagenet", "none"):
            return cls(text, text)
        path = Path(text)
        if not path.is_file():
            raise typer.BadParameter(
                f"{text}: no such file; imagenet, none or a file of tensors", param_hint="--pretrained"
            )
        return cls(f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}", text)


if __name__ == "__main__":
    typer.run(main)
