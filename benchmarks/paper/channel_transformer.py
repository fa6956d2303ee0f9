"""A transformer over slices as the model of the latents, with a key-value cache.

After T-CA, the entropy model of FTIC ("FAT"; Li et al., ICLR 2024).

    token 0       hyper parameters -> 3x3 convolution
    token k       slice k - 1 as decoded                        each through a 3x3 convolution of its own to `width`
    depth layers  x += proj(attention(LN x));  x += MLP(LN x)   weights of its own for every token, joined by attention
    head k        [token k | slice k's part of the hyper parameters] -> three 3x3 convolutions -> scales, means

Attention is among channels, inside windows of `window` x `window` positions: a channel's query, key and value are
vectors over the window's positions, and a channel of token k sees the channels of its own head in tokens 0 .. k. So a
causal mask over slices is all the order there is, and what token k asks of earlier tokens are their keys and values,
which do not change once computed: `ChannelTransformer.step` keeps them. Windows at the right and lower edge are what is
left of them.

From the published network: the attention, its mask, its windows, the sizes in `FAT`. Ours: slices of unequal size,
norms over the channels of a position rather than of a window, and no window borders in the depth-wise convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a `ChannelTransformer`.

    Attributes:
        groups: latent channels of each slice, in coding order.
        hyper: channels of the hyper parameters.
        width: channels of a token.
        heads: parts of a token that attend separately; divides width.
        depth: layers.
        window: side of the attention's windows, in latent positions.
        outputs: tensors predicted for each slice: scales, means, and further ones such as the published network's
            correction of the decoded latents (3).
    """

    groups: tuple[int, ...]
    hyper: int
    width: int = 256
    heads: int = 16
    depth: int = 12
    window: int = 8
    outputs: int = 2


FAT = TransformerConfig(groups=(64,) * 5, hyper=640, outputs=3)
"""The published network's size."""


class KeyValueCache:
    """Keys and values of one layer, (n, tokens * c, P) each: n windows and heads, c channels of a token, P positions.

    Memory for all tokens is taken at the first. A token is written in its place, so nothing can be differentiated.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.filled = 0
        self._both: Tensor | None = None  # (2, n, tokens * c, P)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token's keys and values (n, c, P). Returns those of all tokens so far, (n, (k + 1) c, P)."""
        n, c, positions = keys.shape
        if self._both is None:
            self._both = keys.new_empty(2, n, self.tokens * c, positions)
        start, end = self.filled * c, (self.filled + 1) * c
        self.filled += 1
        self._both[0, :, start:end] = keys
        self._both[1, :, start:end] = values
        return self._both[0, :, :end], self._both[1, :, :end]

    def bytes(self) -> int:
        """Size of what is held."""
        return 0 if self._both is None else self._both.nbytes


@dataclass
class TransformerState:
    """What decoding slice k needs of what came before. `ChannelTransformer.step` changes it.

    Attributes:
        hyper: slice k's part of the hyper parameters, (B, 2 groups[k], h, w) for each k.
        token: token 0 before its own convolution, (B, token channels, h, w).
        caches: one for each layer.
        next: the slice that comes next.
    """

    hyper: tuple[Tensor, ...]
    token: Tensor
    caches: list[KeyValueCache]
    next: int = 0

    def bytes(self) -> int:
        """Size of the caches."""
        return sum(cache.bytes() for cache in self.caches)


class _PerToken(nn.Module):
    """A linear layer with weights of its own for every token: x (n, P, cin), n tokens from `first` -> (n, P, cout)."""

    def __init__(self, tokens: int, cin: int, cout: int):
        super().__init__()
        layers = [nn.Linear(cin, cout) for _ in range(tokens)]  # for their initial values
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor, first: int) -> Tensor:
        here = slice(first, first + x.shape[0])
        return torch.baddbmm(self.bias[here, None], x, self.weight[here].transpose(1, 2))


class TransformerLayer(nn.Module):
    """One layer, on all tokens at once under the mask, or on one token that sees those in the cache and itself."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        tokens = len(c.groups)
        self.heads, self.window = c.heads, c.window
        # Depth-wise, so that a channel's vector over the window knows of its neighbourhood and of the picture's edge.
        self.position = nn.Parameter(torch.empty(tokens * c.width, 1, 3, 3).uniform_(-1 / 3, 1 / 3))
        self.qkv = _PerToken(tokens, c.width, 3 * c.width)
        self.proj = _PerToken(tokens, c.width, c.width)
        self.expand = _PerToken(tokens, c.width, c.width)
        self.reduce = _PerToken(tokens, c.width, c.width)

    def forward(self, x: Tensor, first: int, size: tuple[int, int, int], cache: KeyValueCache | None) -> Tensor:
        """x (n, B h w, width), size (B, h, w) -> same shape. Without a cache the tokens are 0 .. n - 1."""
        qkv = self.qkv(self._placed(F.layer_norm(x, x.shape[2:]), first, size), first)
        q, k, v = self._windows(qkv, size).unbind()
        if cache is not None:
            k, v = cache.append(k, v)
        scores = torch.bmm(q, k.transpose(1, 2)) * self.window**-1.0  # one over the root of the number of positions
        if cache is None:
            scores = scores.masked_fill(self._later(x.shape[0], scores), float("-inf"))
        mixed = self._positions(torch.bmm(scores.softmax(dim=2), v), x.shape, size)
        x = x + self.proj(mixed, first)
        return x + self.reduce(F.gelu(self.expand(F.layer_norm(x, x.shape[2:]), first)), first)

    def _placed(self, x: Tensor, first: int, size: tuple[int, int, int]) -> Tensor:
        """x plus GELU of its 3x3 depth-wise convolution."""
        n, _, width = x.shape
        image = x.unflatten(1, size).permute(1, 0, 4, 2, 3).flatten(1, 2)  # (B, n width, h, w)
        weight = self.position[first * width : (first + n) * width]
        conv = F.conv2d(image, weight, padding=1, groups=n * width)
        return x + F.gelu(conv.unflatten(1, (n, width)).permute(1, 0, 3, 4, 2).reshape(x.shape))

    def _windows(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """(n, B h w, 3 width) -> (3, B windows heads, n width / heads, window^2), zero beyond the picture's edge.

        Zeros are neutral: a product of two channels over a window is the sum over the positions that are there.
        """
        (B, h, w), side = size, self.window
        x = x.unflatten(1, size)
        if h % side or w % side:
            x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        x = x.reshape(x.shape[0], B, x.shape[2] // side, side, x.shape[3] // side, side, 3, self.heads, -1)
        return x.permute(6, 1, 2, 4, 7, 0, 8, 3, 5).flatten(7).flatten(5, 6).flatten(1, 4)

    def _positions(self, x: Tensor, shape: torch.Size, size: tuple[int, int, int]) -> Tensor:
        """Inverse of `_windows`, of one of the three; shape is that of the layer's input."""
        (B, h, w), side = size, self.window
        rows, columns = -(-h // side), -(-w // side)
        x = x.reshape(B, rows, columns, self.heads, shape[0], -1, side, side)
        x = x.permute(4, 0, 1, 6, 2, 7, 3, 5).reshape(shape[0], B, rows * side, columns * side, shape[2])
        return x[:, :, :h, :w].reshape(shape)

    @staticmethod
    def _later(n: int, scores: Tensor) -> Tensor:
        """True where the key's token comes after the query's, (n c, n c)."""
        token = torch.arange(n, device=scores.device).repeat_interleave(scores.shape[1] // n)
        return token[None, :] > token[:, None]


class ChannelTransformer(nn.Module):
    """Scales and means of each slice from the hyper parameters and the slices before it.

    `forward` takes all slices at once; `start` and `step` go slice by slice with a cache, without gradients. The two
    agree to rounding, not to the bit, so an encoder must step as its decoder does. Outputs are raw: scales have no
    bound.

    >>> model = ChannelTransformer(TransformerConfig(groups=(4, 8), hyper=6, width=16, heads=2, depth=2)).eval()
    >>> state, previous = model.start(torch.zeros(1, 6, 4, 4)), None
    >>> for k in range(2):
    ...     scales, means = model.step(state, previous)
    ...     previous = means.round()  # a decoder reads symbols here
    >>> means.shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c = self.config = config
        self.groups = c.groups
        token = sum(c.groups) // len(c.groups)
        self.start_token = nn.Conv2d(c.hyper, token, 3, padding=1)
        self.hyper_parts = nn.Conv2d(c.hyper, 2 * sum(c.groups), 1)
        self.lift = nn.ModuleList(nn.Conv2d(cin, c.width, 3, padding=1) for cin in (token, *c.groups[:-1]))
        self.layers = nn.ModuleList(TransformerLayer(c) for _ in range(c.depth))
        self.heads = nn.ModuleList(self._head(g) for g in c.groups)

    def _head(self, g: int) -> nn.Sequential:
        c = self.config
        inner = max(c.outputs * g, c.width // 2)
        return nn.Sequential(
            nn.Conv2d(c.width + 2 * g, c.width // 2, 3, padding=1), nn.GELU(),
            nn.Conv2d(c.width // 2, inner, 3, padding=1), nn.GELU(),
            nn.Conv2d(inner, c.outputs * g, 3, padding=1),
        )  # fmt: skip

    def start(self, hyper: Tensor) -> TransformerState:
        """Hyper parameters (B, hyper, h, w) -> the state before slice 0."""
        parts = self.hyper_parts(hyper).split([2 * g for g in self.config.groups], dim=1)
        caches = [KeyValueCache(len(self.config.groups)) for _ in self.layers]
        return TransformerState(parts, self.start_token(hyper), caches)

    def step(self, state: TransformerState, previous: Tensor | None) -> tuple[Tensor, ...]:
        """Scales, means (and further outputs) of the next slice k, each (B, groups[k], h, w).

        Args:
            state: from `start`; holds slice k's keys and values afterwards.
            previous: slice k - 1 as decoded, (B, groups[k - 1], h, w); None for slice 0.
        """
        k = state.next
        previous = state.token if previous is None else previous
        x = self._tokens([previous], k)
        size = (previous.shape[0], previous.shape[2], previous.shape[3])
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x = layer(x, k, size, cache)
        state.next = k + 1
        return self._outputs(x[0], state.hyper[k], k)

    def forward(self, y: Tensor, hyper: Tensor, slices: int | None = None) -> tuple[Tensor, ...]:
        """All slices in one masked pass.

        Args:
            y: latents as decoded (or noisy, in training), (B, sum(groups), h, w); slice k reads slices before it only.
            hyper: hyper parameters (B, hyper, h, w).
            slices: how many slices to predict, from the first; all if None.

        Returns:
            Scales, means (and further outputs), each (B, channels of those slices, h, w).
        """
        groups = self.config.groups[:slices]
        state = self.start(hyper)
        x = self._tokens([state.token, *y.split(list(self.config.groups), dim=1)[: len(groups) - 1]], 0)
        for layer in self.layers:
            x = layer(x, 0, (y.shape[0], y.shape[2], y.shape[3]), None)
        found = [self._outputs(x[k], state.hyper[k], k) for k in range(len(groups))]
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    def _tokens(self, slices: list[Tensor], first: int) -> Tensor:
        """Slices (B, c, h, w) -> (n, B h w, width)."""
        lifted = [cast(nn.Module, self.lift[first + i])(part) for i, part in enumerate(slices)]
        return torch.stack([x.permute(0, 2, 3, 1).flatten(0, 2) for x in lifted])

    def _outputs(self, x: Tensor, hyper: Tensor, k: int) -> tuple[Tensor, ...]:
        """Token k after the last layer (B h w, width), hyper (B, 2 g, h, w) -> outputs of slice k."""
        B, _, h, w = hyper.shape
        image = x.reshape(B, h, w, -1).permute(0, 3, 1, 2)
        return self.heads[k](torch.cat((image, hyper), dim=1)).chunk(self.config.outputs, dim=1)
