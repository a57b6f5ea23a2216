"""Which of people's networks load, in which formats, and whether they answer as the network itself.

    python benchmarks/corpus.py [--results corpus.jsonl] [--only REGEX] [--formats script,export] [--again]

All 80 classification architectures of torchvision and 40 of timm, with five classes, on images as small as they take,
each saved as a user would (scripted, traced, scripted and frozen, exported with the batch of one that tutorials have,
its state_dict by ``torch.save`` and as safetensors) in a temporary folder and loaded as ``inspect`` does, with no
option where none is needed. One architecture at a time, each in a process of its own; a run that was cut off goes on
where it stood. ``--table`` prints what the results come to, ``--one NAME`` does one architecture.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_perturb import ClassCounts
from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.errors import ImbperturbError
from imbalance_perturb.inference.execution import select_execution
from imbalance_perturb.inference.model_loading import load_probed

FORMATS = ("script", "trace", "freeze", "export", "pth", "safetensors")
COUNTS = ClassCounts(tuple("abcde"), (100, 50, 20, 10, 5))

#: Images that are predicted: no multiple of any batch that a file has fixed but one.
IMAGES = 5
#: Largest difference of a logit, relative to the largest, that the order of summation makes, with room.
TOLERANCE = 1e-3
#: Or as many times what the network's own float32 differs from float64.
ROUNDINGS = 3
#: Seconds that one architecture may take.
MOST_SECONDS = 1200

#: Smallest sides of torchvision's networks that take no image of 64.
_SIZES = {
    "inception_v3": 96, "maxvit_t": 224, "alexnet": 96,
    # Smaller, their last stages have so few pixels that untrained batch norm magnifies rounding to a hundredth.
    "resnet152": 128, "efficientnet_v2_m": 128, "efficientnet_v2_l": 128,
}  # fmt: skip
#: What the tensors do not show, and the file's user has to say (see ``docs/models.md``).
_ARCH = {"inception_v3": "inception_v3,transform_input=false", "googlenet": "googlenet,transform_input=false"}

TIMM = (
    "resnet18", "resnet50d", "resnext50_32x4d", "seresnet50", "resnetv2_50", "res2net50_26w_4s", "resnest14d",
    "ecaresnet26t", "densenet121", "vgg11_bn", "inception_v4", "xception41", "mobilenetv2_100",
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "efficientnet_b0", "efficientnet_lite0",
    "tf_efficientnetv2_b0", "mnasnet_100", "ghostnet_100", "regnety_002", "repvgg_a0", "hrnet_w18_small", "dla34",
    "dpn68", "cspresnet50", "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_s",
    "mixer_s32_224", "poolformer_s12", "efficientformer_l1", "edgenext_xx_small", "levit_128s", "pvt_v2_b0",
    "eca_nfnet_l0",
)  # fmt: skip


class Subject(NamedTuple):
    """An untrained network, the side of the images it takes, and ``--arch`` for its tensors where they need one."""

    network: nn.Module
    size: int
    arch: str | None


def subjects() -> list[str]:
    """Names of all: the smallest of each kind of torchvision's, timm's, then the others by size."""
    models = torchvision.models
    sizes = {
        name: next(iter(models.get_model_weights(name))).meta["num_params"]
        for name in models.list_models(module=models)
    }
    first: dict[str, str] = {}
    names = sorted(sizes, key=lambda name: sizes[name])
    for name in names:
        first.setdefault(re.match("[a-z]+(_v[23])?", name)[0], name)  # type: ignore[index]
    others = [name for name in names if name not in first.values()]
    return [
        *(f"torchvision:{name}" for name in first.values()),
        *(f"timm:{name}" for name in TIMM),
        *(f"torchvision:{name}" for name in others),
    ]


def make(subject: str) -> Subject:
    """Build a network whose every layer matters: no head of zeros, no batch norm that is the identity."""
    torch.manual_seed(0)
    family, _, name = subject.partition(":")
    if family == "timm":
        import timm

        network = timm.create_model(name, num_classes=len(COUNTS))
        settings = network.pretrained_cfg
        size = settings["input_size"][-1] if settings.get("fixed_input_size") else 96
        arch: str | None = subject
    else:
        size, arch = _SIZES.get(name, 64), _ARCH.get(name)
        arguments: dict[str, Any] = {"num_classes": len(COUNTS)}
        if name.startswith("vit"):
            size = 56 if "14" in name else 64
            arguments["image_size"] = size
        if name in ("inception_v3", "googlenet"):
            arguments["init_weights"] = False
        network = torchvision.models.get_model(name, weights=None, **arguments)
    for tensor in network.parameters():
        if not tensor.any() and tensor.ndim > 1:
            nn.init.normal_(tensor, std=0.02)
    settle_norms(network, images(size, 16))
    spread_logits(network, images(size))
    return Subject(network, size, arch)


def images(size: int, n: int = IMAGES) -> Tensor:
    """The images that are predicted."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def settle_norms(network: nn.Module, x: Tensor) -> None:
    """Let batch norms know their inputs: else little of an image is left behind some dozens of layers."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        network(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval().momentum = momentum


def spread_logits(network: nn.Module, x: Tensor) -> None:
    """Change the last layers so that each class has logits of both signs: untrained, an image hardly matters."""

    def spread(layer: nn.Linear | nn.Conv2d, _: object, output: Tensor) -> None:
        rows = output.flatten(2).mean(2) if output.ndim > 2 else output
        mean, deviation = rows.mean(0), rows.std(0).clamp_min(0.05 * float(rows.abs().max()))
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(deviation)

    classes = len(COUNTS)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(spread) for layer in layers if layer.weight.shape[0] == classes]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()


def write_checkpoint(name: str, x: Tensor, folder: Path) -> Path:
    """Write an untrained network of torchvision whose every layer matters on images like ``x``, and its counts."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=len(COUNTS))
    settle_norms(network, x)
    spread_logits(network, x)
    path = folder / f"{name}.pth"
    torch.save(network.state_dict(), path)
    (folder / "counts.json").write_text(json.dumps(COUNTS.to_dict()))
    return path


def save(network: nn.Module, size: int, kind: str, folder: Path) -> Path:
    """Save a network as its users do."""
    x = torch.randn(1, 3, size, size)
    path = folder / f"model{ {'export': '.pt2', 'safetensors': '.safetensors', 'pth': '.pth'}.get(kind, '.pt') }"
    if kind == "export":
        torch.export.save(torch.export.export(network, (x,)), path)
    elif kind == "pth":
        torch.save(network.state_dict(), path)
    elif kind == "safetensors":
        save_file({name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}, path)
    else:
        script = _trace(network, x) if kind == "trace" else torch.jit.script(network)
        (torch.jit.freeze(script) if kind == "freeze" else script).save(str(path))
    return path


def _trace(network: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    try:
        return torch.jit.trace(network, x)
    except Exception:  # noqa: BLE001 - attention traces differ with and without autograd, which torch.jit refuses
        with torch.no_grad():  # what people do then
            return torch.jit.trace(network, x)


def load(path: Path, size: int, arch: str | None) -> Callable[[Tensor], Tensor]:
    """Load a file as ``imbperturb inspect`` does: tried, and optimised."""
    settings = Settings(
        model=ModelSettings(model=str(path), arch=arch),
        preprocess=PreprocessSettings(resize=(size, size), crop="none"),
        run=RunSettings(device="cpu"),
    )
    return load_probed(settings, COUNTS, None, select_execution(settings.run, None)).model


def examine(subject: str, kind: str, made: Subject) -> dict[str, Any]:
    """Save and load one network in one format; the entry of the results."""
    began = time.monotonic()
    x = images(made.size)
    arch = made.arch if kind in ("pth", "safetensors") else None
    entry: dict[str, Any] = {"subject": subject, "format": kind, "size": made.size, "arch": arch}
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = save(made.network, made.size, kind, Path(folder))
        except Exception as error:  # noqa: BLE001 - what torch cannot write nobody has
            return {**entry, "outcome": "not made", "why": _one_line(error)}
        try:
            with torch.no_grad():
                found = load(path, made.size, arch)(x)
        except ImbperturbError as error:
            return {**entry, "outcome": "refused", "why": _one_line(error).replace(str(path), "FILE")}
        except Exception as error:  # noqa: BLE001 - a traceback is what the corpus is to find
            return {**entry, "outcome": "failed", "why": f"{type(error).__name__}: {_one_line(error)}"}
        with torch.no_grad():
            expected = made.network(x)
    expected = expected if isinstance(expected, Tensor) else expected[0]
    difference = float((found - expected).abs().max())
    same = bool((found.argmax(1) == expected.argmax(1)).all())
    right = same and difference <= TOLERANCE * float(expected.abs().max())
    if same and not right:
        # Untrained deep networks magnify rounding: then it counts how far float32 itself is from float64.
        with torch.no_grad():
            exact = copy.deepcopy(made.network).double()(x.double())
        rounding = float((expected - (exact if isinstance(exact, Tensor) else exact[0])).abs().max())
        right = difference <= ROUNDINGS * rounding
        entry |= {"rounding": rounding}
    entry |= {"outcome": "right" if right else "wrong", "same_labels": same, "difference": difference}
    return {**entry, "largest": float(expected.abs().max()), "seconds": round(time.monotonic() - began, 1)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__


def run_one(subject: str, formats: list[str], results: Path) -> None:
    """Examine one architecture in this process; each entry is written as soon as it is there."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = make(subject)
    for kind in formats:
        entry = examine(subject, kind, made)
        with results.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def run(options: argparse.Namespace) -> None:
    """Examine what is still missing."""
    for subject in subjects():
        done = set() if options.again else {entry["format"] for entry in entries(options.results, subject)}
        formats = [kind for kind in options.formats if kind not in done]
        if not formats or not re.search(options.only, subject):
            continue
        command = [sys.executable, __file__, "--one", subject, "--results", str(options.results), "--formats"]
        try:
            code = subprocess.run([*command, ",".join(formats)], timeout=MOST_SECONDS).returncode
            why = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            code, why = 1, f"it took more than {MOST_SECONDS} s"
        there = {entry["format"] for entry in entries(options.results, subject)}
        missing = [kind for kind in formats if kind not in there]
        if code and missing:  # the rest of its formats are tried when the command runs again
            entry = {"subject": subject, "format": missing[0], "outcome": "failed", "why": why}
            with options.results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        print(subject, {e["format"]: e["outcome"] for e in entries(options.results, subject)}, flush=True)


def entries(results: Path, subject: str | None = None) -> Iterator[dict[str, Any]]:
    """The latest entry for each architecture and format."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in results.read_text().splitlines() if results.is_file() else []:
        entry = json.loads(line)
        latest[entry["subject"], entry["format"]] = entry
    return (entry for entry in latest.values() if subject in (None, entry["subject"]))


def report(results: Path) -> Iterator[str]:
    """The table: how many could be made, load, and answer as the network itself; then all that did not."""
    found = list(entries(results))
    yield "| family | format | networks | made | load | same labels and logits |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for family in ("torchvision", "timm"):
        for kind in FORMATS:
            own = [e for e in found if e["format"] == kind and e["subject"].startswith(family)]
            made = [e for e in own if e["outcome"] != "not made"]
            loaded = [e for e in made if e["outcome"] in ("right", "wrong")]
            right = sum(e["outcome"] == "right" for e in loaded)
            yield f"| {family} | {kind} | {len(own)} | {len(made)} | {len(loaded)} | {right} |"
    yield ""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for e in found:
        if e["outcome"] != "right":
            why = e.get("why") or f"logits differ by {e['difference']:.2g} (largest {e['largest']:.2g})"
            reasons.setdefault((e["outcome"], e["format"], why[:200]), []).append(e["subject"].partition(":")[2])
    for (outcome, kind, why), names in sorted(reasons.items()):
        yield f"- {outcome}, {kind}: {', '.join(names)}: {why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("corpus.jsonl"), help="one line an examination, added to")
    parser.add_argument("--only", default="", help="architectures whose name this expression finds")
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(FORMATS))
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--table", action="store_true", help="print the results, examine nothing")
    parser.add_argument("--one", help="examine this one in this process")
    options = parser.parse_args()
    if options.table:
        print(*report(options.results), sep="\n")
    elif options.one:
        run_one(options.one, options.formats, options.results)
    else:
        run(options)


if __name__ == "__main__":
    main()
