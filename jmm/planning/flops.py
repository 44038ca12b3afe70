"""Counts the floating-point operations of a function: those of its matrix products and convolutions."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Two for each multiplication of a matrix product or a convolution, loops followed; all else, softmax and norms
    too, counts as nothing, as is usual (Kaplan et al. 2020, section 2.1).

    Raises:
      ValueError: a loop does not say how often it runs.
    """
    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count(jaxpr: Jaxpr) -> float:
    """Of all operations in it."""
    return sum((_one(equation) for equation in jaxpr.eqns), 0.0)


def _one(equation: Any) -> float:
    kind, settings = equation.primitive.name, equation.params
    shapes = [getattr(each.aval, "shape", ()) for each in equation.invars]
    if kind == "dot_general":
        ((left, _), _) = settings["dimension_numbers"]
        return 2.0 * prod(equation.outvars[0].aval.shape) * prod(shapes[0][axis] for axis in left)
    if kind == "conv_general_dilated":
        _, features, *window = settings["dimension_numbers"].rhs_spec
        taken = shapes[1][features] * prod(shapes[1][axis] for axis in window)
        if prod(settings["lhs_dilation"]) > 1:  # the gradient of a strided one: gaps between its inputs cost nothing
            taken /= prod(settings["lhs_dilation"])
        return 2.0 * prod(equation.outvars[0].aval.shape) * taken / settings["batch_group_count"]
    if kind == "pallas_call":
        estimate = settings["cost_estimate"]
        return float(estimate.flops) if estimate else 0.0
    if kind == "scan":
        return settings["length"] * count(settings["jaxpr"].jaxpr)
    if kind == "while":
        inside = count(settings["body_jaxpr"].jaxpr)
        if inside:
            raise ValueError("a loop of products does not say how often it runs")
        return 0.0
    if kind == "cond":
        return max(count(branch.jaxpr) for branch in settings["branches"])
    if kind == "shard_map":
        return prod(settings["mesh"].shape.values()) * count(settings["jaxpr"])
    inner = (each for each in settings.values() if isinstance(each, (Jaxpr, ClosedJaxpr)))
    return sum((count(each.jaxpr if isinstance(each, ClosedJaxpr) else each) for each in inner), 0.0)
