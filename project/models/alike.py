"""Whether two networks are of the same build: class by class and setting by setting, whatever their weights."""

from functools import partial
from typing import Any

from torch import nn

MACHINERY = frozenset(vars(nn.Module())) | {"training"}
HOOKS = tuple(name for name in MACHINERY if name.endswith("_hooks"))
PLAIN = (bool, int, float, str, bytes, type(None), type)


def built_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks compute the same, given the same tensors, as far as classes and settings tell.

    Modules of the same names must be of the same class, print the same (torch's layers print their settings) and have
    the same attributes; those which only the other has, and its class knows nothing of, say nothing. What cannot be
    compared counts as different, and so does a module with hooks or with methods of its own.

    Args:
        one: A network as it was built.
        other: Another, of which its user may have noted this and that.
    """
    mine, theirs = dict(one.named_modules()), dict(other.named_modules())
    return mine.keys() == theirs.keys() and all(_same_module(mine[name], theirs[name]) for name in mine)


def _same_module(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other) or one.extra_repr() != other.extra_repr():
        return False
    if any(getattr(module, name) for module in (one, other) for name in HOOKS):
        return False
    mine, theirs = (
        {name: value for name, value in vars(module).items() if name not in MACHINERY} for module in (one, other)
    )
    if any(hasattr(type(other), name) for name in theirs.keys() - mine.keys()):
        return False  # such as a forward of its own
    return mine.keys() <= theirs.keys() and all(_same(mine[name], theirs[name]) for name in mine)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, PLAIN):
        return bool(one == other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, partial):
        return _same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    return False
