"""An independent float64 transcription of the paper's equations in NumPy, for an analytic model.

Nothing here is shared with the package: the loss is written as the paper has it, its gradient is taken through
the analytic model by the chain rule with the full Jacobians, and 1/T is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOCAL_GAMMA = 2.0


def target(counts: list[int], m: int | None = None) -> np.ndarray:
    """Eq. (2) with g(n) = log(M/n)."""
    n = np.asarray(counts, dtype=np.float64)
    g = np.log((n.max() if m is None else m) / n)
    return g / g.sum()


def softmax(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Eq. (1) for rows of logits."""
    e = np.exp(z / temperature - (z / temperature).max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def loss(p: np.ndarray, target: np.ndarray, kind: str) -> np.ndarray:
    """One loss for each row of probabilities."""
    if kind == "cross-entropy":
        return -(target * np.log(p)).sum(axis=1)
    if kind == "mse":
        return ((p - target) ** 2).mean(axis=1)
    return -(target * (1 - p) ** FOCAL_GAMMA * np.log(p)).sum(axis=1)


def loss_gradient(p: np.ndarray, target: np.ndarray, kind: str) -> np.ndarray:
    """∂ℓ/∂p for each row."""
    if kind == "cross-entropy":
        return -target / p
    if kind == "mse":
        return 2 * (p - target) / p.shape[1]
    g = FOCAL_GAMMA
    return target * (g * (1 - p) ** (g - 1) * np.log(p) - (1 - p) ** g / p)


@dataclass
class AnalyticModel:
    """z = W2 tanh(W1 x + b1) + b2 on flattened inputs: smooth, so gradients have closed form."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    @classmethod
    def random(cls, seed: int, features: int, hidden: int, classes: int) -> AnalyticModel:
        rng = np.random.default_rng(seed)
        return cls(
            rng.normal(size=(hidden, features)) / np.sqrt(features),
            rng.normal(size=hidden),
            rng.normal(size=(classes, hidden)),
            rng.normal(size=classes),
        )

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x.reshape(len(x), -1) @ self.w1.T + self.b1) @ self.w2.T + self.b2

    def gradient(self, x: np.ndarray, target: np.ndarray, temperature: float, kind: str) -> np.ndarray:
        flat = x.reshape(len(x), -1)
        h = np.tanh(flat @ self.w1.T + self.b1)
        p = softmax(h @ self.w2.T + self.b2, temperature)
        dp = loss_gradient(p, target, kind)
        jacobian = (np.einsum("nc,ck->nck", p, np.eye(p.shape[1])) - np.einsum("nc,nk->nck", p, p)) / temperature
        dz = np.einsum("nc,nck->nk", dp, jacobian)
        return (((dz @ self.w2) * (1 - h**2)) @ self.w1).reshape(x.shape)

    def perturb(
        self,
        x: np.ndarray,
        target: np.ndarray,
        eps: float,
        temperature: float = 1000.0,
        kind: str = "cross-entropy",
    ) -> np.ndarray:
        """Eq. (3)."""
        return x - eps * np.sign(self.gradient(x, target, temperature, kind))
