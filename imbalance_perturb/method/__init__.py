"""The paper, on tensors: counts, target, perturbation; knows neither users' files nor devices."""
