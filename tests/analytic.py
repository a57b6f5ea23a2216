"""The analytic model of ``reference.py`` as a float64 torch module."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference import AnalyticModel


def as_module(model: AnalyticModel) -> nn.Module:
    hidden, features = model.w1.shape
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, model.w2.shape[0])
    ).double()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (model.w1, model.b1, model.w2, model.b2), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return net.eval()
