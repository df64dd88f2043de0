"""MaskedModel: a frozen network whose maskable weights live in one flat buffer.

Each maskable layer's `weight` becomes a view of the buffer (house rule: masking, sampling and updating are a few
operations over one tensor, not a loop over layers). The learned layers come first in the buffer, so that logits,
learned masks and weight gradients are a prefix of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.pattern import Layout, NMPattern, count_violations, group_order, group_width, weight_view

_PROTECTED_PARTS = ("conv_in", "conv_out", "lm_head")
_PROTECTED_TEXTS = ("time_emb", "class_emb")
# Why a layer has no mask that the user has named.
_BY_CHOICE = "is dense by choice"


def is_protected(name: str) -> bool:
    """True for layers that are never masked: first and last convolution, language-model head, time and class embeddings."""
    return any(part in _PROTECTED_PARTS for part in name.split(".")) or any(text in name for text in _PROTECTED_TEXTS)


def is_target(name: str, targets: Iterable[str]) -> bool:
    """True where a target ("all", "down_blocks.1", "attentions.0", ...) is a run of whole parts of the layer's name.

    A target of `whole_name` is that layer alone.
    """
    return any(target in ("all", whole_name(name)) or f".{target}." in f".{name}." for target in targets)


def whole_name(name: str) -> str:
    """The target that is the layer of this name alone: it may be a run of parts of another layer's name."""
    return f"={name}"


def maskable_layers(model: nn.Module) -> dict[str, Tensor]:
    """Name to weight of every Conv2d and Linear layer that is not protected, in the model's order.

    The head of a language model of transformers is protected whatever its name. A parameter that several layers share is
    one weight, under the first layer's name. A parameter that is also part of a protected layer, an embedding or another
    module is protected.
    """
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    chosen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not is_protected(name) and module is not head
    }
    others = {
        id(parameter)
        for name, module in model.named_modules()
        for own, parameter in module._parameters.items()
        if not (name in chosen and own == "weight")
    }
    layers: dict[str, Tensor] = {}
    seen = set(others)
    for name, module in chosen.items():
        weight = module.weight
        if id(weight) not in seen:
            layers[name] = weight
        # A computed weight is a new tensor at each access, and its id may be used again.
        if _holds_its_weight(module):
            seen.add(id(weight))
    return layers


def _holds_its_weight(module: nn.Module) -> bool:
    return "weight" in module._parameters or "weight" in module._buffers


def _check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Raise for a layer whose input is multiplied by more than `weight`: a mask would leave the rest dense."""
    modules = dict(model.named_modules())
    for name in names:
        module = modules[name]
        further = [own for own in module._parameters if own not in ("weight", "bias")]
        further += [part for part, child in module._modules.items() if child is not None]
        if not _holds_its_weight(module):
            problem = "computes its weight (weight_norm, spectral_norm, pruning or another parametrization)"
            allowed = "a weight of its own; torch's remove_parametrizations, remove_weight_norm and their like make it one"
        elif further or any(part == "base_layer" or part.startswith("lora_") for part in name.split(".")):
            problem = f"is part of an adapter or holds more than a weight and a bias ({', '.join(further) or 'LoRA'})"
            allowed = "plain layers; merge the adapter into the weights first"
        else:
            continue
        raise MaskproError(f"layer {name} {problem}, so that a mask would not make it sparse; allowed: {allowed}")


def model_hash(model: nn.Module) -> str:
    """sha256 over names, shapes and float32 values of all weights, independent of memory layout and device."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class MaskedLayer:
    """A maskable layer and its place `[start, stop)` in the flat buffer."""

    name: str
    shape: torch.Size
    start: int
    stop: int
    learned: bool


class MaskedModel:
    """Takes over `model`: freezes it and points its maskable weights at the flat buffer (dense until a mask is set).

    Changes the caller's own object: give it a deep copy to keep the original. Parameters no longer require gradients. The
    model is put into evaluation mode, so Dropout is off and BatchNorm keeps its averages.

    Attributes:
        base: the dense weights in group order, `[P]`.
        layers: the layers that have a mask, the learned ones first.
        num_learned: number of weights of the learned layers.
        dense: name of each maskable layer without a mask to the reason: its name was given as `dense`, or m does not divide
            its width.

    With `covered`, only those layers have a mask, since an extracted mask may leave layers out. Layers that `dense` names
    as `targets` does have none either.

    Raises:
        MaskproError: no maskable layer; no layer, or a covered layer, whose width m does not divide; a target or a part of
            `dense` that matches nothing; `dense` matches every layer; a layer whose weight is computed from others
            (weight_norm, spectral_norm); or a layer that multiplies by more than its weight (LoRA).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pattern: NMPattern,
        layout: Layout = "channel",
        targets: tuple[str, ...] = ("all",),
        covered: Collection[str] | None = None,
        dense: tuple[str, ...] = (),
    ):
        parameters = maskable_layers(model)
        if covered is not None:
            parameters = {name: weight for name, weight in parameters.items() if name in covered}
        _check_parts("dense", dense, parameters)
        asked = {name: weight for name, weight in parameters.items() if not is_target(name, dense)}
        _check_weights(model, asked)
        problems = {name: width_problem(weight.shape, pattern, layout) for name, weight in asked.items()}
        self.dense = {name: problems.get(name, _BY_CHOICE) for name in parameters if problems.get(name, _BY_CHOICE)}
        _check_layers(parameters, self.dense, pattern, targets, all_needed=covered is not None)
        parameters = {name: weight for name, weight in parameters.items() if name not in self.dense}
        self.model = model.requires_grad_(False).eval()
        self.pattern = pattern
        self.layout: Layout = layout
        learned = [name for name in parameters if is_target(name, targets)]
        order = learned + [name for name in parameters if name not in set(learned)]
        self.base = torch.cat([group_order(parameters[name].detach(), layout) for name in order])
        self.layers: list[MaskedLayer] = []
        start = 0
        for position, name in enumerate(order):
            shape = parameters[name].shape
            self.layers.append(
                MaskedLayer(
                    name=name, shape=shape, start=start, stop=start + shape.numel(), learned=position < len(learned)
                )
            )
            start += shape.numel()
        self.num_learned = sum(layer.shape.numel() for layer in self.layers if layer.learned)
        self._mask = torch.ones_like(self.base, dtype=torch.bool)
        self._weights = self.base.clone()
        self._gradient: Tensor | None = None
        self._parameters = parameters
        for layer in self.layers:
            parameters[layer.name].data = self._view(self._weights, layer)

    def share_weights(self, dense: nn.Module) -> None:
        """Hold what this network has in common with `dense`, which it is a copy of, only once.

        The dense network's Linear layers become views of `base`. What has no mask here becomes that of the dense network.
        Convolutions keep weights of their own: `base` has another memory layout, in which they would round otherwise.
        """
        theirs = dict(dense.named_parameters())
        masked = {id(parameter) for parameter in self._parameters.values()}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in masked:
                parameter.data = theirs[name].data
        for layer in self.layers:
            if len(layer.shape) == 2:
                theirs[f"{layer.name}.weight"].data = self._view(self.base, layer)

    @property
    def mask(self) -> Tensor:
        """The mask that is set now, all layers, bool `[P / M, M]`; all True while dense."""
        return self._mask.view(-1, self.pattern.m)

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of logits and losses: at least float32, also where the weights are bfloat16."""
        return torch.promote_types(self.base.dtype, torch.float32)

    @property
    def learned_base(self) -> Tensor:
        """Dense weights of the learned layers, `[G, M]`."""
        return self.base[: self.num_learned].view(-1, self.pattern.m)

    def set_mask(self, mask: Tensor) -> None:
        """Mask the network with bool groups `[G, M]` of the learned layers (the others keep theirs), or `[P / M, M]`.

        Relaxed masks (float factors of the weights) are multiplied in the same way, but `mask` does not return them.
        """
        flat = mask.reshape(-1)
        count = flat.numel()
        if count not in (self.num_learned, self.base.numel()):
            raise ValueError(f"mask has {count} positions; allowed: {self.num_learned} or {self.base.numel()}")
        if flat.dtype == torch.bool:
            self._mask[:count] = flat
        weights, base = self._weights[:count], self.base[:count]
        if base.is_cuda:
            torch.mul(base, flat, out=weights)
        else:
            # Two passes over memory are several times faster on a CPU than a product of floats and bools.
            weights.copy_(flat).mul_(base)

    def weight_gradient(self) -> Tensor:
        """The buffer `[G, M]` in which `backward` accumulates d loss / d (w * m) of the learned layers; zero it first."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.base[: self.num_learned])
            for layer in self.layers:
                if layer.learned:
                    parameter = self._parameters[layer.name].requires_grad_(True)
                    parameter.grad = self._view(self._gradient, layer)
        return self._gradient.view(-1, self.pattern.m)

    def layer_masks(self, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Layer name to bool mask of the weight's shape, from `mask` (`[P / M, M]`) or the mask set now."""
        flat = (self.mask if mask is None else mask).reshape(-1)
        views = {layer.name: self._view(flat, layer).clone(memory_format=torch.contiguous_format) for layer in self.layers}
        return {name: views[name] for name in self._parameters}

    def groups(self, layer_masks: Mapping[str, Tensor]) -> Tensor:
        """Inverse of `layer_masks`: bool `[P / M, M]`, checked against this model's layers, pattern and layout.

        Raises:
            MaskproError: a layer is missing or unknown, has another shape, or is not n:m.
        """
        check_layer_masks(layer_masks, {layer.name: layer.shape for layer in self.layers}, self.pattern, self.layout)
        parts = [group_order(layer_masks[layer.name], self.layout) for layer in self.layers]
        return torch.cat(parts).to(self.base.device).view(-1, self.pattern.m)

    def _view(self, flat: Tensor, layer: MaskedLayer) -> Tensor:
        return weight_view(flat[layer.start : layer.stop], layer.shape, self.layout)


def layer_problems(
    layer_masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], pattern: NMPattern, layout: Layout
) -> dict[str, str]:
    """Layer name to what is wrong with its mask: unknown to the model, missing, of another shape, or not n:m."""
    problems = {}
    for name in [*shapes, *(name for name in layer_masks if name not in shapes)]:
        if name not in shapes:
            problems[name] = "is for another model, which has that layer"
        elif name not in layer_masks:
            problems[name] = "is missing: the mask is for another model"
        elif layer_masks[name].shape != shapes[name]:
            problems[name] = f"has shape {list(layer_masks[name].shape)}; the model's is {list(shapes[name])}"
        elif len(shapes[name]) not in (2, 4):
            problems[name] = f"has shape {list(shapes[name])}; allowed: that of a Linear or Conv2d weight"
        elif problem := width_problem(shapes[name], pattern, layout):
            problems[name] = problem
        elif violations := count_violations(layer_masks[name], pattern, layout):
            groups = layer_masks[name].numel() // pattern.m
            problems[name] = (
                f"is not {pattern} in layout {layout}: {violations} of {groups} groups do not keep exactly {pattern.n}"
            )
    return problems


def check_layer_masks(
    layer_masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], pattern: NMPattern, layout: Layout
) -> None:
    """Raise a MaskproError where masks do not fit the layers of a model or are not n:m (`layer_problems`)."""
    problems = layer_problems(layer_masks, shapes, pattern, layout)
    for name, problem in problems.items():
        others = f" (and {len(problems) - 1} layers more)" if len(problems) > 1 else ""
        raise MaskproError(f"mask of layer {name} {problem}{others}")


def width_problem(shape: torch.Size, pattern: NMPattern, layout: Layout) -> str:
    """Why a weight of that shape can't be n:m, or ""."""
    width = group_width(shape, layout)
    return f"is {width} wide in layout {layout}, which {pattern.m} does not divide" if width % pattern.m else ""


def _check_layers(
    parameters: Mapping[str, Tensor],
    dense: Mapping[str, str],
    pattern: NMPattern,
    targets: tuple[str, ...],
    *,
    all_needed: bool,
) -> None:
    if not parameters:
        raise MaskproError("model has no maskable layer; allowed: a model with unprotected Conv2d or Linear layers")
    narrow = [name for name, why in dense.items() if why != _BY_CHOICE]
    if len(dense) == len(parameters) and not narrow:
        raise MaskproError("dense leaves no layer to be masked; allowed: parts of the names of some layers, not of all")
    if len(dense) == len(parameters) or (narrow and all_needed):
        raise MaskproError(
            f"pattern is {pattern}; its {pattern.m} does not divide the width of {len(narrow)} layers of "
            f"{len(parameters)}, such as {narrow[0]}, which {dense[narrow[0]].split(',')[0]}; allowed: a pattern that fits"
        )
    fitting = [name for name in parameters if name not in dense]
    _check_parts("targets", targets, parameters)
    for target in targets:
        if not any(is_target(name, (target,)) for name in fitting):
            name = next(name for name in dense if is_target(name, (target,)))
            raise MaskproError(
                f"targets holds {target!r}, which matches only layers that stay dense: {name} {dense[name]}; allowed: "
                f"parts of the names of others, such as {fitting[0]}"
            )
    if not targets:
        raise MaskproError("targets is empty; allowed: all, or parts of layer names")


def _check_parts(option: str, parts: Iterable[str], names: Collection[str]) -> None:
    """Raise for a part of layer names, given as an option, that no layer's name has."""
    for part in parts:
        if names and not any(is_target(name, (part,)) for name in names):
            raise MaskproError(
                f"{option} holds {part!r}, which matches no maskable layer; allowed: {'all, or ' * (option == 'targets')}"
                f"whole parts of a layer name such as {next(iter(names))}"
            )
