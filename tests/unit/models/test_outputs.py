"""imbalance_perturb.models.outputs: which of the tensors that a network returns are the logits."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelOutputError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.outputs import find_logits, follow

LOGITS, FEATURES = torch.ones(2, 5), torch.zeros(2, 8)
MAPS, STATES = torch.zeros(2, 8, 4, 4), torch.zeros(2, 9, 8)
Aux = namedtuple("Aux", ["logits", "aux_logits"])


class Output(NamedTuple):
    features: Tensor
    scores: Tensor


class Model(OrderedDict[str, Any]):
    """As transformers' ModelOutput: a dict whose entries are attributes, too."""


@pytest.mark.parametrize(
    ("output", "num_classes"),
    [
        ((FEATURES, LOGITS), 5),
        ((FEATURES, LOGITS, MAPS), 5),
        (Output(FEATURES, LOGITS), 5),
        ({"features": FEATURES, "scores": LOGITS}, 5),
        ({"output": FEATURES, "scores": LOGITS}, 5),
        ((torch.zeros(()), LOGITS, (STATES, STATES)), None),
        ((LOGITS, MAPS), None),
        ((MAPS, LOGITS), None),
        ((LOGITS, STATES), None),
        ((LOGITS, LOGITS.argmax(1, keepdim=True).expand(2, 5)), None),
        ((LOGITS, torch.zeros(2, 1)), None),
        (((FEATURES, LOGITS), MAPS), 5),
        ({"logits": LOGITS, "features": FEATURES}, 7),
        ({"logits": LOGITS, "hidden_states": (STATES,)}, None),
        (Model(loss=torch.zeros(()), logits=LOGITS), None),
        (Aux(LOGITS, LOGITS + 1), 5),
        (Aux(LOGITS, LOGITS + 1), None),
        ({"out": LOGITS, "aux": LOGITS + 1}, 5),
        ((LOGITS,), None),
        ((LOGITS.view(2, 5, 1, 1), FEATURES), 5),
    ],
)
def test_the_logits_are_found(output: Any, num_classes: int | None) -> None:
    """By their name, by their C columns, or as the only tensor that has a row of numbers for each image."""
    found = find_logits(output, 2, num_classes)
    assert torch.equal(follow(output, found.path).flatten(1), LOGITS)
    assert found.note is not None


@pytest.mark.parametrize(
    ("output", "num_classes", "reason"),
    [
        ((FEATURES, LOGITS), None, r"number 1 \(2, 8\), number 2 \(2, 5\): nothing tells which.*give COUNTS"),
        ((LOGITS, LOGITS), 5, r"\(2, 5\), number 2 \(2, 5\): 2 of them have a column for each of the 5 classes"),
        ((LOGITS, FEATURES), 7, "none of them has a column for each of the 7 classes"),
        ([LOGITS, LOGITS, LOGITS], None, "a list with .*nothing tells"),
        ({"a": LOGITS, "b": LOGITS}, 5, "a dict with 'a'.*2 of them"),
        ({"a": "x"}, 5, "a dict with 'a', none of it a tensor"),
        ((), 5, "a tuple without a tensor"),
    ],
)
def test_what_nothing_tells_is_refused(output: Any, num_classes: int | None, reason: str) -> None:
    """The first tensor is no better than another: shapes and the way out are named."""
    with pytest.raises(ModelOutputError, match=reason) as caught:
        find_logits(output, 2, num_classes)
    assert "wrap it so that it" in str(caught.value)


class Heads(nn.Module):
    """Returns features before its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(x).relu().mean((2, 3))
        return features, self.head(features)


class Named(Heads):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.conv(x).relu().mean((2, 3))
        return {"logits": self.head(features), "pooler_output": features}


@pytest.mark.parametrize(("make", "strict"), [(Heads, True), (Named, False)])
def test_a_trace_of_several_outputs_gives_its_logits(make: type[nn.Module], strict: bool, tmp_path: Path) -> None:
    """(features, logits) and transformers' dicts in a trace are settled once, by COUNTS or by name, with a note."""
    network, x = make().eval(), torch.randn(3, 3, 16, 16)
    torch.jit.trace(network, x, strict=strict).save(str(tmp_path / "m.pt"))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=(3, 16, 16), num_classes=5)
    returned = network(x)
    torch.testing.assert_close(loaded(x), returned["logits"] if isinstance(returned, dict) else returned[1])
    assert any("logits" in note for note in loaded.info.notes)
    assert loaded.info.num_classes == 5
    if make is Heads:
        with pytest.raises(ModelOutputError, match=r"m\.pt: the model returned a tuple with number 1 \(4, 8\)"):
            load_classifier(tmp_path / "m.pt", input_shape=(3, 16, 16))
