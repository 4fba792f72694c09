"""PixPro's formulas (https://arxiv.org/abs/2011.10043, section 3) as printed: loops over images and pixels."""

import math

import torch


def cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def propagate(x, gamma, transform):
    """Equations 3 and 4 for the pixels (N, D) of an image; `transform` is g of one pixel (D,)."""
    out = []
    for xi in x:
        y = 0
        for xj in x:
            y = y + max(cosine(xi, xj), torch.zeros((), dtype=x.dtype)) ** gamma * transform(xj)
        out.append(y)
    return torch.stack(out)


def centre(box, flip, row, column, size):
    """Where the centre of a cell of a map of h × w lies in the image."""
    (top, left, height, width), (h, w) = box, size
    across = (column + 0.5) * width / w
    return top + (row + 0.5) * height / h, left + (width - across if flip else across)


def diagonal(box, size):
    return math.hypot(box[2] / size[0], box[3] / size[1])


def positive(place1, place2, size, threshold):
    """Equation 1: pairs (i, j) of pixels, counted row by row, of two views of one image; a place is (box, flip)."""
    h, w = size
    unit = max(diagonal(place1[0], size), diagonal(place2[0], size))
    pairs = []
    for i in range(h * w):
        for j in range(h * w):
            a, b = (centre(*place, k // w, k % w, size) for place, k in ((place1, i), (place2, j)))
            if math.dist(a, b) / unit <= threshold:
                pairs.append((i, j))
    return pairs


def pixel_loss(y, x, places1, places2, size, threshold):
    """Equation 5 for one order of the views: y, x (B, N, D); the mean over pairs, then over images."""
    loss = 0
    for b in range(len(y)):
        pairs = positive(places1[b], places2[b], size, threshold)
        if pairs:
            loss = loss - sum(cosine(y[b, i], x[b, j]) for i, j in pairs) / len(pairs)
    return loss / len(y)


def instance_loss(prediction, target):
    """−cos of predictions and targets (B, D), averaged."""
    return -sum(cosine(p, t) for p, t in zip(prediction, target, strict=True)) / len(target)
