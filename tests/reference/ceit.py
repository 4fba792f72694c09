"""CeiT written the straightforward way: what the tests compare with and the benchmarks measure against.

Written from arXiv:2103.11816 and from the documented key layouts, independently of `timm_extra`: images and LeFF in
NCHW with permutes, explicit attention matrices, BatchNorms unfused, every token computed in every block. Two classes,
one per published key layout, so that a random state dict of either serves to test the conversion.
"""

import math

import torch
from torch import nn


class SelfAttention(nn.Module):
    """Attention with the whole matrix in memory; `queries` picks the rows that are asked for."""

    def __init__(self, dim, heads, qkv_bias):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads))


def attend(q, k, v, heads):
    """softmax(q kᵀ / √d) v per head, on (B, N, C) tensors."""
    b, n, c = q.shape
    d = c // heads
    q, k, v = (t.view(b, t.shape[1], heads, d).permute(0, 2, 1, 3) for t in (q, k, v))
    weights = torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(d), dim=-1)
    return torch.matmul(weights, v).permute(0, 2, 1, 3).reshape(b, n, c)


def to_map(tokens):
    """(B, N, C) to a square map (B, C, √N, √N)."""
    b, n, c = tokens.shape
    side = math.isqrt(n)
    return tokens.permute(0, 2, 1).reshape(b, c, side, side)


class Stem(nn.Module):
    """Image to a quarter of its size."""

    def __init__(self, in_chans):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(64)

    def forward(self, x):
        return nn.functional.max_pool2d(self.bn(self.conv(x)), 3, 2, 1)


class ConvLeFF(nn.Module):
    """LeFF of three convolutions, each with its BatchNorm."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)

    def forward(self, tokens):
        x = nn.functional.gelu(self.bn1(self.conv1(to_map(tokens))))
        x = nn.functional.gelu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x)).flatten(2).permute(0, 2, 1)


class OfficialBlock(nn.Module):
    """Attention, then LeFF for patches; the class token adds its own norm."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads, True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.leff = ConvLeFF(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return x + torch.cat([y[:, :1], self.leff(y[:, 1:])], dim=1)


class OfficialLCA(nn.Module):
    """Attention over class tokens, computed for all of them, of which the last is kept."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads, True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.feedforward = nn.ModuleDict(dict(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x):
        x = (x + self.attn(self.norm1(x)))[:, -1:]
        hidden = nn.functional.gelu(self.feedforward['fc1'](self.norm2(x)))
        return (x + self.feedforward['fc2'](hidden))[:, 0]


class OfficialCeiT(nn.Module):
    """CeiT in the official key layout (coeusguo/ceit at 44c16d3): (B, in_chans, S, S) to (B, num_classes)."""

    def __init__(self, dim=192, heads=3, depth=12, img_size=224, in_chans=3, num_classes=1000):
        super().__init__()
        self.i2t = nn.ModuleDict(dict(backbone=Stem(in_chans), proj=nn.Conv2d(64, dim, 4, 4)))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (img_size // 16) ** 2, dim) * 0.02)
        self.blocks = nn.ModuleList([OfficialBlock(dim, heads) for _ in range(depth)])
        self.lca = OfficialLCA(dim, heads)
        self.pos_layer_embed = nn.Parameter(torch.randn(1, depth, dim) * 0.02)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.i2t['proj'](self.i2t['backbone'](x)).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.cls_token.repeat(x.shape[0], 1, 1), x], dim=1) + self.pos_embed
        layers = []
        for block in self.blocks:
            x = block(x)
            layers.append(x[:, 0])
        return self.head(self.norm(self.lca(torch.stack(layers, dim=1) + self.pos_layer_embed)))


class Named(nn.Module):
    """An `fn` inside a wrapper, optionally with the norm before it: the article's key names."""

    def __init__(self, fn, norm=None):
        super().__init__()
        if norm is not None:
            self.norm = norm
        self.fn = fn

    def forward(self, x):
        return self.fn(self.norm(x) if hasattr(self, 'norm') else x)


class ArticleAttention(nn.Module):
    """Attention without qkv bias and with heads of any width."""

    def __init__(self, dim, heads, dim_head, last_only=False):
        super().__init__()
        inner = heads * dim_head
        self.heads, self.last_only = heads, last_only
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Identity() if heads == 1 and dim_head == dim else nn.Sequential(nn.Linear(inner, dim))

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out(attend(q[:, -1:] if self.last_only else q, k, v, self.heads))


class ArticleLeFF(nn.Module):
    """LeFF with linear layers and BatchNorm1d, GELU after each of the three BatchNorms."""

    def __init__(self, dim):
        super().__init__()
        hidden, empty = 4 * dim, nn.Identity()
        self.up_proj = nn.ModuleList([nn.Linear(dim, hidden), empty, nn.BatchNorm1d(hidden)])
        conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.depth_conv = nn.ModuleList([conv, nn.BatchNorm2d(hidden)])
        self.down_proj = nn.ModuleList([nn.Linear(hidden, dim), empty, nn.BatchNorm1d(dim)])

    def forward(self, x):
        gelu = nn.functional.gelu
        x = gelu(self.up_proj[2](self.up_proj[0](x).permute(0, 2, 1))).permute(0, 2, 1)
        x = gelu(self.depth_conv[1](self.depth_conv[0](to_map(x)))).flatten(2).permute(0, 2, 1)
        return gelu(self.down_proj[2](self.down_proj[0](x).permute(0, 2, 1))).permute(0, 2, 1)


class ArticleCeiT(nn.Module):
    """CeiT in the article's key layout (rishikksh20/CeiT-pytorch at d41cb23), 224 × 224 images."""

    def __init__(self, dim=192, heads=3, dim_head=64, depth=12, num_classes=1000, with_lca=True, pool='cls'):
        super().__init__()
        self.pool = pool
        self.conv = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 4), nn.BatchNorm2d(32), nn.MaxPool2d(3, 2))
        self.to_patch_embedding = nn.ModuleList([nn.Identity(), nn.Linear(512, dim)])
        self.pos_embedding = nn.Parameter(torch.randn(1, 197, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList()
        for _ in range(depth):
            attn = Named(Named(ArticleAttention(dim, heads, dim_head), nn.LayerNorm(dim)))
            leff = Named(Named(ArticleLeFF(dim), nn.LayerNorm(dim)))
            self.transformer.layers.append(nn.ModuleList([attn, leff]))
        if with_lca:
            mlp = nn.Module()
            mlp.net = nn.Sequential(nn.Linear(dim, 384), nn.GELU(), nn.Identity(), nn.Linear(384, dim), nn.Identity())
            mlp.forward = lambda x: mlp.net(x)
            attn = Named(ArticleAttention(dim, 4, 48, last_only=True), nn.LayerNorm(dim))
            self.LCA = nn.Module()
            self.LCA.layers = nn.ModuleList([nn.ModuleList([attn, Named(mlp, nn.LayerNorm(dim))])])
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, x):
        x = self.conv(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 16, 16 * c)
        x = self.to_patch_embedding[1](x)
        x = torch.cat([self.cls_token.repeat(b, 1, 1), x], dim=1) + self.pos_embedding
        layers = []
        for attn, leff in self.transformer.layers:
            x = x + attn(x)
            layers.append(x[:, 0])
            patches = x[:, 1:]
            x = torch.cat([x[:, :1], patches + leff(patches)], dim=1)
        if hasattr(self, 'LCA'):
            attn, mlp = self.LCA.layers[0]
            x = torch.stack(layers, dim=1)
            last = x[:, -1:] + attn(x)
            x = (last + mlp(last))[:, 0]
        else:
            x = x.mean(dim=1) if self.pool == 'mean' else x[:, 0]
        return self.mlp_head(x)


def randomize(model, seed=0):
    """Give every parameter and statistic a random value, so that no term is zero or one by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith('running_var') or (value.ndim == 1 and name.endswith('weight')):  # variances, norm scales
            noise = 1 + 0.2 * noise.clamp(-2, 2)
        else:
            noise = noise * (0.02 if value.ndim != 4 else 0.1)
        value.copy_(noise)
    return model.eval()
