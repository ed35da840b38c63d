"""Remove whole filters, those whose loss the next layers feel least, and correct the biases.

Algebra   y = sum over c of W[:, c] * a_c + b;  without the channels R:  y' = sum over c not in R of W[:, c] * a_c + b'
          W of the others also takes over what they can of R (`channel_merge`).
          b' gives the mean of y back, a factor for each output channel its deviation (`layerwise.with_statistics_of`).
          At the border of a padded convolution a removed channel gave less than in the middle: b' is right in the mean
          over all positions alone
Pattern   the groups of `channel_groups`: what makes the channels, what works on each of them alone, what reads them
Check     the group is closed nowhere; at least 4 of its channels are kept
Rewrite   the channels' entries are cut out of every stored tensor of the group, or out of a copy if others read it.
          Shapes that are noted in the graph are dropped: they would be those of before
Choice    the share of what a reading layer loses with a channel in what it would lose with all of them
          (`channel_effects`); the smallest of all groups together, until `share` of all channels are gone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, helper, numpy_helper

from engines.graphs import copy_of, read_anywhere
from engines.passes.channel_effects import can_be_measured, measured_effects
from engines.passes.channel_groups import Cut, Group, entries, find_groups
from engines.passes.channel_merge import Together
from engines.passes.layerwise import with_statistics_of
from engines.passes.names import FreeNames
from engines.passes.weighted import reader_counts
from engines.reference import Arrays

__all__ = ["prune_channels"]

_KEPT = 4
"""A layer keeps at least so many filters."""


def prune_channels(
    model: ModelProto, samples: Iterable[Arrays], share: float, *, multiple: int = 1
) -> tuple[ModelProto, str]:
    """The model without `share` (of 1, rounded down to whole filters) of the filters that can be removed.

    A layer that loses filters keeps a multiple of `multiple` of them, so fewer may be removed: kernels that work on 8
    or 16 channels at a time gain nothing by odd numbers, and 2:4 sparsity takes multiples of 4 alone.
    Layers joined by additions lose the same filters, which count once. `samples` (one dictionary of inputs each) are
    run through ONNX Runtime, whose errors pass through; they are read twice, an iterator is read into memory. The note
    says what is removed, and why a layer is left. It is the same object where nothing is removed. Raises ValueError
    where `share` is not in [0, 1), or `multiple` not at least 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of filters to remove is {share}; expected at least 0 and less than 1")
    if multiple < 1:
        raise ValueError(f"filters are to be kept in multiples of {multiple}; expected at least 1")
    given = list(samples) if isinstance(samples, Iterator) else samples
    groups = find_groups(model)
    for group in groups:
        if not can_be_measured(group):
            group.close("its effect takes too much memory to be measured")
    left = [f"{', '.join(group.makers)} is left: {group.closed}" for group in groups if group.closed]
    open_groups = [group for group in groups if not group.closed and group.channels > _KEPT]
    total = sum(group.channels for group in open_groups)
    count = int(share * total + 1e-9)
    if not count:
        return model, "; ".join(["no filter is removed", *left])
    measured = measured_effects(model, open_groups, given)
    if measured is None:
        return model, "no filter is removed: there are no samples to measure effects on"
    kept = _chosen(measured.effects, count, multiple)
    removed = total - sum(len(one) for one in kept)
    if not removed:
        return model, "; ".join(["no filter is removed", *left])
    pruned = _without(model, open_groups, kept, measured.together)
    corrected, said = with_statistics_of(model, pruned, given, _readers(open_groups, kept))
    changes = ", ".join(
        f"{' and '.join(group.makers)} {'keeps' if len(group.makers) == 1 else 'keep'} {len(one)} of {group.channels}"
        for group, one in zip(open_groups, kept, strict=True)
        if len(one) < group.channels
    )
    head = f"{removed} of {total} filters are removed: {changes}"
    return corrected, "; ".join(filter(None, [head, said, *left]))


def _chosen(effects: Sequence[np.ndarray], count: int, multiple: int) -> list[np.ndarray]:
    """The channels that each group keeps, in order, where `count` are removed of all; equal effects by order."""
    ranked = sorted((effect, g, c) for g, one in enumerate(effects) for c, effect in enumerate(one.tolist()))
    gone: list[set[int]] = [set() for _ in effects]
    for _, g, c in ranked:
        if count and len(effects[g]) - len(gone[g]) > _KEPT:
            gone[g].add(c)
            count -= 1
    kept = []
    for one, removed in zip(effects, gone, strict=True):
        back = -(len(one) - len(removed)) % multiple
        spared = sorted(removed, key=lambda c, one=one: -one[c])[:back]  # type: ignore[misc]
        kept.append(np.array([c for c in range(len(one)) if c not in removed or c in spared]))
    return kept


def _readers(groups: Sequence[Group], kept: Sequence[np.ndarray]) -> dict[str, np.ndarray | None]:
    """Layers that read fewer channels now, and which of their own outputs are still there (None is all)."""
    smaller = [(group, one) for group, one in zip(groups, kept, strict=True) if len(one) < group.channels]
    makes = {name: one for group, one in smaller for name in group.makers}
    return {layer.node.name: makes.get(layer.node.name) for group, _ in smaller for layer, _ in group.consumers}


def _without(
    model: ModelProto, groups: Sequence[Group], kept: Sequence[np.ndarray], together: Mapping[str, Together]
) -> ModelProto:
    copy = copy_of(model)
    del copy.graph.value_info[:]
    _merge(copy.graph, groups, kept, together)
    cuts: dict[tuple[str, int], list[tuple[Cut, int]]] = {}
    for index, group in enumerate(groups):
        if len(kept[index]) < group.channels:
            for cut in group.cuts:
                cuts.setdefault((cut.node, cut.input), []).append((cut, index))
            for node in copy.graph.node:
                if node.name in group.depthwise:
                    _set_groups(node.attribute, len(kept[index]))
    _cut(copy.graph, cuts, kept)
    read = read_anywhere(copy.graph)
    stored = [tensor for tensor in copy.graph.initializer if tensor.name in read]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(stored)
    return copy


def _merge(
    graph: GraphProto, groups: Sequence[Group], kept: Sequence[np.ndarray], together: Mapping[str, Together]
) -> None:
    """Weights that several layers share stay: what stands in for a channel in one does not in the other."""
    stored, counts = {tensor.name: tensor for tensor in graph.initializer}, reader_counts(graph)
    for group, one in zip(groups, kept, strict=True):
        for layer, span in group.consumers:
            if counts[layer.weights] > 1 or len(one) == group.channels:
                continue
            tensor = stored[layer.weights]
            weights = numpy_helper.to_array(tensor)
            first = np.moveaxis(weights.astype(np.float64), layer.in_axis, 0)
            by_channel = first.reshape(group.channels, span, *first.shape[1:])
            merged = together[layer.node.input[0]].merged(by_channel, one).reshape(first.shape)
            back = np.ascontiguousarray(np.moveaxis(merged, 0, layer.in_axis).astype(weights.dtype))
            tensor.CopyFrom(numpy_helper.from_array(back, layer.weights))


def _set_groups(attributes: Iterable, count: int) -> None:  # type: ignore[type-arg]
    for attribute in attributes:
        if attribute.name == "group":
            attribute.CopyFrom(helper.make_attribute("group", count))


def _cut(graph: GraphProto, cuts: Mapping[tuple[str, int], list[tuple[Cut, int]]], kept: Sequence[np.ndarray]) -> None:
    """Every reader of a tensor that cuts the same entries shares the new one, which has the old name where all do."""
    nodes = {node.name: node for node in graph.node}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[tuple[str, tuple[tuple[int, int, int, bool], ...]], list[tuple[str, int]]] = {}
    for (node, slot), several in cuts.items():
        what = tuple(sorted((cut.axis, index, cut.span, cut.is_shape) for cut, index in several))
        uses.setdefault((nodes[node].input[slot], what), []).append((node, slot))
    counts, names = reader_counts(graph), FreeNames(graph)
    for (name, what), places in uses.items():
        array = numpy_helper.to_array(stored[name])
        for axis, index, span, is_shape in what:
            if is_shape:
                array = array.copy()
                array[axis] = len(kept[index]) * span
            else:
                array = np.take(array, entries(kept[index], span), axis=axis)
        new = name if counts[name] == len(places) else names(name)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), new)
        if new == name:
            stored[name].CopyFrom(tensor)
        else:
            graph.initializer.append(tensor)
            for node, slot in places:
                nodes[node].input[slot] = new
