"""Passes of a network on a GPU as CUDA graphs: recorded once, then replayed without launching each kernel from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Passes before the recording, as torch's documentation recommends.
_WARM_UP_PASSES = 3


class GraphedPass:
    """A function of arguments (tensors, named tuples of tensors, None) to a tensor, all on one GPU.

    The first call records the function. Later calls copy their arguments into the recorded places and replay it. All other
    memory that it reads or writes must stay in place. A function that can't be recorded, or arguments of other shapes, lead
    to a plain call. The caller passes the same function to every call. It is not kept here: a bound method would keep its
    object alive, and that object usually holds this one.

    Args:
        accumulated: tensors that the function adds to; they are restored after recording, which takes several passes.
    """

    def __init__(self, accumulated: Sequence[Tensor] = ()):
        self._accumulated = accumulated
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[Tensor] = []
        self._result: Tensor | None = None
        self._is_recordable = True

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The function's value."""
        if self._graph is None and self._is_recordable:
            self._record(function, arguments)
        tensors = _tensors(arguments)
        shapes = [tensor.shape for tensor in tensors]
        if self._graph is None or self._result is None or shapes != [place.shape for place in self._places]:
            return function(*arguments)
        for place, tensor in zip(self._places, tensors, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._result.clone()

    def _record(self, function: Callable[..., Tensor], arguments: Sequence[Any]) -> None:
        own = [_clone(argument) for argument in arguments]
        before = [tensor.clone() for tensor in self._accumulated]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                function(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._result = function(*own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_recordable = False
            warnings.warn(f"a pass of the network could not be recorded as a CUDA graph ({error})", stacklevel=2)
        else:
            self._graph, self._places = graph, _tensors(own)
        finally:
            for tensor, values in zip(self._accumulated, before, strict=True):
                tensor.copy_(values)


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    parts = (argument if isinstance(argument, tuple) else (argument,) for argument in arguments)
    return [tensor for part in parts for tensor in part if tensor is not None]


def _clone(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return type(argument)(*(tensor.clone() for tensor in argument))
    return None if argument is None else argument.clone()
