"""Pictures of results: ratios to the originals, and time and memory over the size of the image."""

import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

from timm_extra.plot import new_figure

from .results import Result, groups, times

WIDTH, DPI = 9.0, 150  # inches: fonts are of a size to read where the picture is shown 900 pixels wide
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')  # by Okabe and Ito
MARKERS, STYLES = 'os^D', ('-', '--', ':', '-.')
SIZES = ('perceiver/image-to-latents', 'perceiver/resolution')
Results = Dict[str, Result]


def _ratios(results: Results) -> Dict[Tuple[str, str], Dict[str, Dict[str, float]]]:
    """Ratios of whole models and steps to what computes the same, by case and other implementation."""
    found: Dict[Tuple[str, str], Dict[str, Dict[str, float]]] = {}
    for processor, result in results.items():
        for row in result['rows']:
            apart = row['case'].startswith(('ops/', 'kernels/')) or 'axis' in result['cases'][row['case']]
            if row['correct'] and 'ratio' in row and not apart:
                found.setdefault((row['case'], row['against']), {})[processor] = row['ratio']
    return found


def draw_speed(results: Results, file: Path) -> None:
    """Draw the ratio of every comparison as a point, with the spread over the rounds, a colour for each processor."""
    from matplotlib.ticker import NullLocator

    found = _ratios(results)
    figure = new_figure(WIDTH, 1.3 + 0.23 * len(found))
    axis = figure.subplots()
    axis.axvspan(0.01, 1, color='0.94', zorder=0)
    for i, processor in enumerate(results):
        shown = [(y, by[processor]) for y, by in enumerate(found.values()) if processor in by]
        middle = [ratio['median'] for _, ratio in shown]
        below = [ratio['median'] - ratio['p10'] for _, ratio in shown]
        above = [ratio['p90'] - ratio['median'] for _, ratio in shown]
        places = [y + 0.24 * (i - (len(results) - 1) / 2) for y, _ in shown]
        style = dict(fmt=MARKERS[i % 4], color=COLOURS[i % 4], ms=5, lw=1.4, capsize=2, label=processor)
        axis.errorbar(middle, places, xerr=(below, above), **style)
    ratios = [ratio[key] for by in found.values() for ratio in by.values() for key in ('p10', 'p90')]
    axis.set(xscale='log', xlim=(min(0.8, *ratios) / 1.05, max(1.25, *ratios) * 1.05), ylim=(len(found) - 0.4, -0.6))
    ticks = [t for t in (0.25, 0.5, 0.8, 1, 1.5, 2, 3, 4, 6, 10, 20) if min(ratios) <= t <= max(ratios) or t == 1]
    axis.set_xticks(ticks, [f'{tick:g}×' for tick in ticks], fontsize=8.5)
    axis.xaxis.set_minor_locator(NullLocator())
    labels = [f'{case}  vs  {against}' for case, against in found]
    axis.set_yticks(range(len(found)), labels, fontsize=8.5)
    axis.axvline(1, color='black', lw=1)
    axis.grid(alpha=0.3)
    axis.set_xlabel('time of the other over ours: right of 1 ours is faster, left of it (grey) slower', fontsize=9)
    axis.legend(fontsize=8.5, loc='lower left', bbox_to_anchor=(0, 1), ncols=len(results), frameon=False)
    figure.savefig(file, dpi=DPI)


def _over_sizes(results: Results) -> Dict[str, List[str]]:
    return {group: names for group, names in groups(list(results.values())).items() if group in SIZES}


def draw_sizes(results: Results, file: Path) -> None:
    """Draw time and extra peak memory over the size of the image; what runs out of memory is marked at the edge."""
    chosen = _over_sizes(results)
    figure = new_figure(WIDTH, 3.3 * len(chosen))
    panels = figure.subplots(len(chosen), 2, squeeze=False)
    for (group, names), line in zip(chosen.items(), panels, strict=True):
        for axis, key, unit in zip(line, ('ms', 'peak_mib'), ('time, ms', 'extra peak memory, MiB'), strict=True):
            _panel(axis, results, names, key)
            axis.set_ylabel(f'{group.split("/")[1]}\n{unit}', fontsize=9)
    for axis in panels[-1]:
        axis.set_xlabel('pixels of the image', fontsize=9)
    panels[0, 0].legend(fontsize=8.5)
    figure.savefig(file, dpi=DPI)


def _panel(axis: Any, results: Results, names: List[str], key: str) -> None:
    seen: List[str] = []
    pixels: List[int] = []
    for style, (processor, result) in zip(STYLES, results.items(), strict=False):
        for who, points in times(result, names, key).items():
            seen += [who] if who not in seen else []
            colour, marker = COLOURS[seen.index(who)], MARKERS[seen.index(who)]
            look = dict(color=colour, marker=marker, ms=5, lw=1.6, label=f'{who}, {processor}')
            axis.plot(*zip(*sorted(points.items()), strict=True), style, **look)
            pixels += points
        rows = [row for row in result['rows'] if row['case'] in names and 'out of memory' in row.get('error', '')]
        places = [result['cases'][row['case']]['axis'][1] for row in rows]
        if places:
            colour = COLOURS[seen.index(rows[0]['against'])]
            axis.plot(places, [0.96] * len(places), 'x', color=colour, mew=2, transform=axis.get_xaxis_transform())
            text = dict(fontsize=8.5, color=colour, transform=axis.get_xaxis_transform(), ha='right', va='center')
            axis.text(min(places) / 1.3, 0.96, 'out of memory', **text)
    axis.set(xscale='log', yscale='log')
    axis.margins(y=0.12)
    shown = sorted(set(pixels))
    shown = [p for p, following in zip(shown, [*shown[1:], math.inf], strict=True) if following > 1.5 * p]
    axis.set_xticks(shown, [f'{round(p**0.5)}²' for p in shown], fontsize=8, rotation=35)
    axis.minorticks_off()
    axis.grid(alpha=0.3)


PICTURES = {  # by file: title, what is shown of results (empty where there is nothing), and how it is drawn
    'speed.png': ('Speed against the originals', _ratios, draw_speed),
    'sizes.png': ('Time and memory over the size of the image', _over_sizes, draw_sizes),
}
