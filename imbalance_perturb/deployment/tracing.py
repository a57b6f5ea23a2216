"""Both passes of the correction and the gradient between them as one graph of forward operators."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.deployment.lowering import lowering_table
from imbalance_perturb.deployment.pooling_gradients import adaptive_avg_pool
from imbalance_perturb.deployment.program_files import quietly, reason
from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.perturbation import LossSpec, loss_direction, step
from imbalance_perturb.method.private_torch import find

make_fx = find("torch.fx.experimental.proxy_tensor.make_fx")
FakeTensorMode = find("torch._subclasses.fake_tensor.FakeTensorMode")
DimDynamic, ShapeEnv, StatelessSymbolicContext = (
    find(f"torch.fx.experimental.symbolic_shapes.{name}")
    for name in ("DimDynamic", "ShapeEnv", "StatelessSymbolicContext")
)
_OpOverload, _OperatorBase = find("torch._ops.OpOverload"), find("torch._ops.OperatorBase")
_DispatchKey = find("torch._C.DispatchKey")

#: What only autograd computes: none of it may be left.
_OF_AUTOGRAD = re.compile(r"backward|_vjp|_jvp")


class Correction(nn.Module):
    """The correction as a function of a batch alone: ``images`` to logits, base logits, and each step's gradient.

    Args:
        logits: the network as a module that returns (N, C) logits.
        debiased: what is to be done with it.
        preprocessing: where pixels (N, C, H, W) are to be taken, uint8, in the place of normalised images.
        front: where the step is at a hidden layer, the network up to there, of whose output ``logits`` are.
    """

    target: Tensor
    eps: Tensor
    lowest: Tensor
    highest: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        logits: nn.Module,
        debiased: PerturbedClassifier,
        preprocessing: Preprocessing | None = None,
        front: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.front, self.logits = front, logits
        self.spec = LossSpec(debiased.loss, debiased.temperature)
        self.steps = debiased.steps if debiased.active else 0
        self.clipped = debiased.clip is not None
        self.register_buffer("target", debiased.target.float())
        self.register_buffer("eps", debiased.eps.float())
        for name, bound in zip(("lowest", "highest"), debiased.clip or (0.0, 0.0), strict=True):
            self.register_buffer(name, torch.as_tensor(bound, dtype=torch.float32))
        # What is done to logits is the same affine map of each class's logit, whatever the method.
        classes = len(debiased.counts)
        shift = debiased.adjust(torch.zeros(1, classes, dtype=torch.float64))
        scale = debiased.adjust(torch.ones(1, classes, dtype=torch.float64)) - shift
        self.scaled, self.shifted = bool((scale != 1).any()), bool(shift.any())
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        self.takes_pixels = preprocessing is not None
        mean, std = ((0.0,), (1.0,)) if preprocessing is None else (preprocessing.mean, preprocessing.std)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits and base logits, (N, C) each, then the gradient of each step, (N, ...) as what is moved."""
        x = images
        if self.takes_pixels:
            x = (images.to(torch.float32) / 255 - self.mean) / self.std
        if self.front is not None:
            with torch.no_grad():
                x = self.front(x)
        base, gradients = None, []
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_(True)
                logits = self.logits(leaf)
                direction = loss_direction(logits.detach(), self.target, self.spec)
                (gradient,) = torch.autograd.grad(logits, leaf, direction)
            base = logits.detach() if base is None else base
            gradients.append(gradient)
            x = step(x, gradient.sign(), self.eps, (self.lowest, self.highest) if self.clipped else None)
        with torch.no_grad():
            logits = self.logits(x)
        return self._adjusted(logits), logits if base is None else base, *gradients

    def _adjusted(self, logits: Tensor) -> Tensor:
        logits = logits * self.scale if self.scaled else logits
        return logits + self.shift if self.shifted else logits


def trace(correction: Correction, x: Tensor, *, any_size: bool) -> fx.GraphModule:
    """Trace the correction into a graph that autograd has no part in, for batches of any size.

    Args:
        correction: on the CPU, frozen, in eval mode.
        x: a batch (N, C, H, W) as it takes it; N is of no consequence.
        any_size: whether the graph is to be of any H and W, too.

    Returns:
        a module with the parameters, once each, and the outputs of :class:`Correction`.

    Raises:
        ModelFileError: naming what cannot be in such a graph.
    """
    named = {**dict(correction.named_parameters()), **dict(correction.named_buffers())}
    x = x.contiguous()
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    side = DimDynamic.DYNAMIC if any_size else DimDynamic.STATIC
    sizes = [DimDynamic.DYNAMIC, DimDynamic.STATIC, side, side]
    images = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    tensors = [mode.from_tensor(tensor.detach().contiguous(), static_shapes=True) for tensor in named.values()]

    def run(tensors: list[Tensor], images: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.func.functional_call(
            correction, dict(zip(named, tensors, strict=True)), (images,)
        )
        return found

    try:
        with quietly(), plain_attention(), plain_pooling():
            traced = make_fx(run, decomposition_table=lowering_table(), tracing_mode="symbolic")(tensors, images)
    except Exception as error:  # a network's own code runs on symbols, and raises anything
        raise ModelFileError(
            f"the network cannot be traced into a graph for any batch size: {reason(error)}"
        ) from error
    graph = _with_parameters(traced, named)
    without_mutation(graph)
    refuse_autograd(graph)
    return graph


def _with_parameters(traced: fx.GraphModule, named: dict[str, Tensor]) -> fx.GraphModule:
    """Make what was handed in beside the images parameters of the module itself."""
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    traced.graph.eliminate_dead_code()
    for node, (name, tensor) in zip(placeholders[:-1], named.items(), strict=True):
        if node.users:
            attribute = name.replace(".", "_")
            if isinstance(tensor, nn.Parameter):
                traced.register_parameter(attribute, nn.Parameter(tensor.detach().contiguous(), requires_grad=False))
            else:
                traced.register_buffer(attribute, tensor.detach())
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.get_attr(attribute))
        traced.graph.erase_node(node)
    placeholders[-1].target = placeholders[-1].name = "images"
    for node in list(traced.graph.nodes):
        if node.target is torch.ops.aten.detach.default:  # there is no autograd to keep out
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.set_codegen(fx.graph.CodeGen())  # a plain function of images
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def without_mutation(graph: fx.GraphModule) -> None:
    """Have what works in place return a new tensor: exporters are several times as slow where they must do this.

    Left as it is: what works in place on a view, or on what a view was taken of.
    """
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node, place in order.items():
        operator = node.target
        if not isinstance(operator, _OpOverload) or not operator._schema.is_mutable:
            continue
        name = operator._schema.name.removeprefix("aten::").removesuffix("_")
        functional = getattr(getattr(torch.ops.aten, name, None), operator._overloadname, None)
        changed = node.args[0]
        if functional is None or _is_view(changed) or any(_is_view(user) for user in changed.users):
            continue
        node.target = functional
        changed.replace_all_uses_with(node, delete_user_cb=lambda user, place=place: order[user] > place)
    graph.recompile()


def _is_view(node: fx.Node) -> bool:
    operator = node.target
    return isinstance(operator, _OpOverload) and operator.is_view


def refuse_autograd(graph: fx.GraphModule) -> None:
    """Refuse a graph in which something is left that only autograd computes.

    Raises:
        ModelFileError: naming the operators.
    """
    # All else is arithmetic on sizes.
    operators = {node.target for node in graph.graph.nodes if isinstance(node.target, _OperatorBase)}
    left = sorted(str(one) for one in operators if _OF_AUTOGRAD.search(str(one)) or not str(one).startswith("aten."))
    if left:
        raise ModelFileError(
            f"the network cannot be exported: {', '.join(left)} has no counterpart in forward operators here"
        )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside: attention as products and a softmax, and no operator made for inference alone."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def plain_pooling() -> Iterator[None]:
    """Inside, while a graph is traced: adaptive average pooling without a change of layout, which is none of a graph's.

    Torch has it end in one where its input is channels-last.
    """
    operator, key = torch.ops.aten.adaptive_avg_pool2d.default, _DispatchKey.CompositeImplicitAutograd
    before = operator.py_kernels.pop(key, None)
    operator.py_impl(key)(adaptive_avg_pool)
    try:
        yield
    finally:
        del operator.py_kernels[key]
        if before is not None:
            operator.py_kernels[key] = before
        operator._dispatch_cache.clear()


def select_outputs(graph: fx.GraphModule, count: int) -> fx.GraphModule:
    """A module of the same parameters that returns the first ``count`` outputs alone."""
    chosen = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    (output,) = (node for node in chosen.graph.nodes if node.op == "output")
    output.args = (tuple(output.args[0])[:count],)
    chosen.graph.eliminate_dead_code()
    chosen.recompile()
    return chosen
