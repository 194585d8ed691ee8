"""A .tflite graph as a torch module, run in batches on any device.

Supports what the two face models contain: float32 activations, float16 or float32 constants, and the dozen
operators of `_Reader`. TensorFlow Lite stores activations as [n, h, w, c]; inside, torch's [n, c, h, w] is used
with channels-last memory, so nothing is copied at either end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CheckpointError, Remedy

# A torch module if it has weights, else any function of tensors.
Layer = Callable[..., torch.Tensor]


class TfliteGraph(nn.Module):
    """The graph of one .tflite file, called with float [n, h, w, c] for any n.

    Returns the file's outputs in its own order and TensorFlow's axis order. Raises CheckpointError if the file is
    not .tflite or uses an operator or option that the face models do not have.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        reader = _Reader(path)
        self.input, self.outputs = reader.input, reader.outputs
        operators = reader.operators()
        self.layers = nn.ModuleList(layer for layer, _, _ in operators if isinstance(layer, nn.Module))
        last = {tensor: step for step, (_, inputs, _) in enumerate(operators) for tensor in inputs}
        self.steps = [
            (*operator, [t for t in set(operator[1]) if last[t] == step and t not in self.outputs])
            for step, operator in enumerate(operators)
        ]  # each with the activations that are not read again
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = {self.input: images.permute(0, 3, 1, 2)}
        for layer, inputs, output, finished in self.steps:
            values[output] = layer(*map(values.__getitem__, inputs))
            for tensor in finished:
                del values[tensor]
        results = map(values.__getitem__, self.outputs)
        return tuple([v.permute(0, 2, 3, 1) if v.ndim == 4 else v for v in results])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return (before, after) of TensorFlow's SAME padding, for ceil(size / stride) outputs; the odd pixel is last."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Reader:
    """Reader of the flatbuffer; the methods named after operators build the layers for them."""

    def __init__(self, path: Path) -> None:
        import tflite

        self.lib: Any = tflite
        self.path = path
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise CheckpointError(
                f"{path} is not a .tflite file; delete it.", remedies=(Remedy.DOWNLOAD_FACES,)
            )
        self.model = tflite.Model.GetRootAsModel(data, 0)
        self.graph = self.model.Subgraphs(0)
        self.input = int(self.graph.Inputs(0))
        self.outputs = [int(i) for i in self.graph.OutputsAsNumpy()]
        self.unpacked: dict[int, torch.Tensor] = {}  # float16 constants after their DEQUANTIZE

    def operators(self) -> list[tuple[Layer, list[int], int]]:
        """Return (layer, ids of the activations it reads, id of the one it writes), in the order to run."""
        names = {v: k for k, v in vars(self.lib.BuiltinOperator).items() if isinstance(v, int)}
        found: list[tuple[Layer, list[int], int]] = []
        for index in range(self.graph.OperatorsLength()):
            op = self.graph.Operators(index)
            code = self.model.OperatorCodes(op.OpcodeIndex())
            # Older files number the operator in the deprecated 8-bit field, newer ones in both.
            name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "unknown")
            inputs, output = [int(i) for i in op.InputsAsNumpy()], int(op.Outputs(0))
            if name == "DEQUANTIZE":
                self.unpacked[output] = self.constant(inputs[0])
                continue
            make = getattr(self, f"_{name.lower()}", None)
            if make is None:
                raise self.unsupported(f"the operator {name}")
            found.append((make(op, inputs, output), inputs if name == "ADD" else inputs[:1], output))
        return found

    def size(self, tensor: int) -> tuple[int, int]:
        """Return (h, w) of an activation."""
        _, h, w, _ = self.shape(tensor)
        return h, w

    def shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self.graph.Tensors(tensor).ShapeAsNumpy()]

    def constant(self, tensor: int) -> torch.Tensor:
        """Return weights as float32, tables as int32, in the file's axis order."""
        if tensor in self.unpacked:
            return self.unpacked[tensor]
        entry = self.graph.Tensors(tensor)
        types = self.lib.TensorType
        kind = {types.FLOAT32: "<f4", types.FLOAT16: "<f2", types.INT32: "<i4"}
        buffer = self.model.Buffers(entry.Buffer())
        if entry.Type() not in kind or buffer.DataLength() == 0:
            raise self.unsupported(f"the tensor {entry.Name().decode()} (type {entry.Type()})")
        values = np.frombuffer(buffer.DataAsNumpy().tobytes(), kind[entry.Type()]).reshape(self.shape(tensor))
        return torch.from_numpy(values.astype(np.int32 if values.dtype.kind == "i" else np.float32))

    def options(self, op: Any, kind: str) -> Any:
        """Return the operator's option table; refuses fused activations and dilations, which no face model has."""
        options = getattr(self.lib, kind)()
        table = op.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        for name, plain in (("FusedActivationFunction", 0), ("DilationHFactor", 1), ("DepthMultiplier", 1)):
            if hasattr(options, name) and getattr(options, name)() != plain:
                raise self.unsupported(f"{kind}.{name} = {getattr(options, name)()}")
        return options

    def unsupported(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} has {what}, which no face model uses; delete it.", remedies=(Remedy.DOWNLOAD_FACES,)
        )

    def padded(self, options: Any, tensor: int, kernel: tuple[int, int], fill: float) -> nn.Module | None:
        """Return the padding before a kernel of this size, or None if there is none."""
        if options.Padding() == self.lib.Padding.VALID:
            return None
        (h, w), (kh, kw) = self.size(tensor), kernel
        pad = (*same_padding(w, kw, options.StrideW()), *same_padding(h, kh, options.StrideH()))
        return nn.ConstantPad2d(pad, fill) if any(pad) else None

    def convolution(self, weight: torch.Tensor, inputs: list[int], options: Any, groups: int) -> nn.Module:
        """Build a convolution with the operator's stride, padding and bias; weight [out, in / groups, h, w]."""
        out_channels, in_channels, kh, kw = weight.shape
        stride = (options.StrideH(), options.StrideW())
        conv = nn.Conv2d(in_channels * groups, out_channels, (kh, kw), stride, groups=groups)
        conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        conv.bias = nn.Parameter(self.constant(inputs[2]))
        before = self.padded(options, inputs[0], (kh, kw), 0.0)
        if before is None:
            return conv
        if stride == (1, 1) and kh == kw and kh % 2 == 1:  # SAME is then even on all sides
            conv.padding = (kh // 2, kw // 2)
            return conv
        return nn.Sequential(before, conv)

    def _conv_2d(self, op: Any, inputs: list[int], output: int) -> nn.Module:
        weight = self.constant(inputs[1]).permute(0, 3, 1, 2)  # from [out, kh, kw, in]
        return self.convolution(weight, inputs, self.options(op, "Conv2DOptions"), 1)

    def _depthwise_conv_2d(self, op: Any, inputs: list[int], output: int) -> nn.Module:
        weight = self.constant(inputs[1]).permute(3, 0, 1, 2)  # from [1, kh, kw, channels]
        return self.convolution(weight, inputs, self.options(op, "DepthwiseConv2DOptions"), weight.shape[0])

    def _max_pool_2d(self, op: Any, inputs: list[int], output: int) -> nn.Module:
        options = self.options(op, "Pool2DOptions")
        kernel = (options.FilterHeight(), options.FilterWidth())
        pool = nn.MaxPool2d(kernel, (options.StrideH(), options.StrideW()))
        before = self.padded(options, inputs[0], kernel, -torch.inf)
        return pool if before is None else nn.Sequential(before, pool)

    def _prelu(self, op: Any, inputs: list[int], output: int) -> nn.Module:
        slope = self.constant(inputs[1])  # [1, 1, c]: one slope per channel
        if slope.numel() != slope.shape[-1]:
            raise self.unsupported(f"a PRELU of shape {list(slope.shape)}")
        prelu = nn.PReLU(slope.numel())
        prelu.weight = nn.Parameter(slope.flatten())
        return prelu

    def _relu(self, op: Any, inputs: list[int], output: int) -> nn.Module:
        return nn.ReLU()

    def _add(self, op: Any, inputs: list[int], output: int) -> Layer:
        self.options(op, "AddOptions")
        return torch.add

    def _pad(self, op: Any, inputs: list[int], output: int) -> Layer:
        (n0, n1), (h0, h1), (w0, w1), (c0, c1) = self.constant(inputs[1]).tolist()
        if n0 or n1:
            raise self.unsupported("a PAD of the batch")
        return partial(F.pad, pad=(w0, w1, h0, h1, c0, c1))

    def _resize_bilinear(self, op: Any, inputs: list[int], output: int) -> Layer:
        options = self.options(op, "ResizeBilinearOptions")
        if options.AlignCorners() or not options.HalfPixelCenters():
            raise self.unsupported("a RESIZE_BILINEAR without half-pixel centres")
        return partial(F.interpolate, size=self.size(output), mode="bilinear", align_corners=False)

    def _reshape(self, op: Any, inputs: list[int], output: int) -> Layer:
        shape = self.shape(output)[1:]
        return lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], *shape)
