"""Functional calls on a module's own tensors as calls of the layer that they amount to.

Libraries derive layers of their own from torch's and write the forward pass anew: a batch norm that activates what it
puts out, a convolution that pads for itself, a LayerNorm over the channels of maps. Traced, such a layer is
``F.batch_norm(x, self.running_mean, …)`` with something before or behind. Here that one call becomes a call of the
layer again, as a plain one of torch's that shares the module's tensors; what stands around it stays around it.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

Target = Callable[..., Any] | str
Plain = Callable[[nn.Module, Mapping[str, Any]], nn.Module | None]

ARGUMENTS: dict[Target, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
TENSORS = ("weight", "bias", "running_mean", "running_var")


def lift(network: nn.Module, graph: fx.Graph) -> dict[str, nn.Module]:
    """Turn functional calls into calls of layers.

    Args:
        network: What was traced; left unchanged.
        graph: Its graph; changed in place.

    Returns:
        Name of a module -> the layer of torch's that is called in its place, which shares its tensors.
    """
    found: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in ARGUMENTS:
            continue
        given = {**dict(zip(ARGUMENTS[node.target], node.args, strict=False)), **node.kwargs}
        owner = _owner(network, node.target, given)
        if owner is None or owner in found or not isinstance(given.get("input"), fx.Node):
            continue
        module = network.get_submodule(owner)
        constant = given.get("bias") if module._parameters.get("bias") is None else None
        layer = PLAIN[node.target](module, given)
        if layer is None:
            continue
        found[owner] = layer
        _replace(graph, node, owner, given["input"], constant)
    _forget_unread(graph)
    return found


def is_plain(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer does what torch's does; one derived from it may do more."""
    return type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)


def _owner(network: nn.Module, call: Target, given: Mapping[str, Any]) -> str | None:
    """Name of the module whose tensors, and all of them, a call reads; None where there is no such module."""
    tensors = {name: one for name in TENSORS if isinstance(one := given.get(name), fx.Node)}
    homes = {name: str(one.target).rpartition(".") for name, one in tensors.items() if one.op == "get_attr"}
    own = {name: owner for name, (owner, _, leaf) in homes.items() if leaf == name and owner}
    if len(set(own.values())) != 1 or any(
        name not in own and not (name == "bias" and call is F.linear) for name in tensors
    ):
        return None
    owner = next(iter(own.values()))
    module = network.get_submodule(owner)
    # A tensor that the call leaves out would be read by the layer.
    return owner if set(own) == {name for name in TENSORS if getattr(module, name, None) is not None} else None


def _replace(graph: fx.Graph, node: fx.Node, owner: str, values: fx.Node, constant: Any) -> None:
    """Put a layer's call in a functional call's place; a constant that is not the layer's own is added to it."""
    with graph.inserting_before(node):
        call = result = graph.call_module(owner, (values,))
        call.meta = dict(node.meta)
        if constant is not None:
            result = graph.call_function(operator.add, (call, constant))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _forget_unread(graph: fx.Graph) -> None:
    """Drop assertions about shapes, and tensors and sizes that nothing reads any more."""
    for node in reversed(list(graph.nodes)):
        checks = node.op == "call_function" and node.target is torch._assert
        if checks or (not node.users and (node.op == "get_attr" or _tells(node))):
            graph.erase_node(node)


def _tells(node: fx.Node) -> bool:
    """Whether a call only tells something of a value, or compares what was told."""
    about = (getattr, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.mod)
    return (node.op == "call_function" and node.target in about) or (node.op == "call_method" and node.target == "dim")


def _view(kind: type[nn.Module], module: nn.Module, **settings: Any) -> nn.Module:
    """A layer of torch's in eval mode with another module's tensors and children."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        layer.__dict__[name] = module.__dict__[name]
    missing = {name: None for name in ("weight", "bias") if name not in module._parameters}
    layer.__dict__ |= {**missing, **settings, "training": False}
    return layer


def _batch_norm(module: nn.Module, given: Mapping[str, Any]) -> nn.Module | None:
    if given.get("training") is not False or module._buffers.get("running_mean") is None:
        return None
    kind = nn.BatchNorm1d if isinstance(module, nn.BatchNorm1d) else nn.BatchNorm2d
    weight = module._parameters.get("weight")
    mean = cast(torch.Tensor, module._buffers["running_mean"])
    return _view(
        kind, module, num_features=len(mean), eps=given.get("eps", 1e-5), momentum=getattr(module, "momentum", 0.1),
        affine=weight is not None, track_running_stats=True,
    )  # fmt: skip


def _layer_norm(module: nn.Module, given: Mapping[str, Any]) -> nn.Module | None:
    shape = given["normalized_shape"]
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) for size in shape):
        return None
    affine = module._parameters.get("weight") is not None
    eps = given.get("eps", 1e-5)
    return _view(nn.LayerNorm, module, normalized_shape=tuple(shape), eps=eps, elementwise_affine=affine)


def _group_norm(module: nn.Module, given: Mapping[str, Any]) -> nn.Module | None:
    weight, groups = module._parameters.get("weight"), given["num_groups"]
    if weight is None or not isinstance(groups, int):
        return None
    eps = given.get("eps", 1e-5)
    return _view(nn.GroupNorm, module, num_groups=groups, num_channels=len(weight), eps=eps, affine=True)


def _linear(module: nn.Module, given: Mapping[str, Any]) -> nn.Module | None:
    if not isinstance(module, nn.Linear):
        return None
    return _view(nn.Linear, module, in_features=module.in_features, out_features=module.out_features)


def _convolution(module: nn.Module, given: Mapping[str, Any]) -> nn.Module | None:
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return None
    own = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation, "groups": module.groups}
    plain = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if any(_pair(given.get(name, plain[name])) != _pair(value) for name, value in own.items()):
        return None  # another geometry than the module says
    if given.get("bias") is None and module.bias is not None:
        return None
    names = ("in_channels", "out_channels", "kernel_size", "padding_mode", "transposed", "output_padding")
    reversed_padding = module._reversed_padding_repeated_twice
    settings = {name: getattr(module, name) for name in names} | own
    return _view(nn.Conv2d, module, _reversed_padding_repeated_twice=reversed_padding, **settings)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value if isinstance(value, str) else (value, value)


PLAIN: dict[Target, Plain] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.linear: _linear,
    F.conv2d: _convolution,
}
