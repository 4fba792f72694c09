"""Pictures of a result file: ratios to the peers, and times over resolution and over the axes of operations."""

import math
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Sized, Tuple

from timm_extra.plot import new_figure

from .rows import Result, Row, at, failure, groups, is_same, names, overview, where

ABREAST = 3  # panels in a row
WIDTH, DPI = 9.0, 150  # inches: fonts are of a size to read where the picture is shown 900 pixels wide
STYLES = (  # colours by Okabe and Ito, and markers for those who see none
    ('#0072B2', 'o'),
    ('#D55E00', 's'),
    ('#009E73', '^'),
    ('#CC79A7', 'D'),
    ('#E69F00', 'v'),
    ('#56B4E9', 'P'),
    ('#000000', '*'),
)
SAME, YARDSTICK = '#0072B2', '#B8CCDD'
RESOLUTION = ('perceiver/image-to-latents', 'perceiver/resolution')


def _title(figure: Any, text: str, result: Result) -> None:
    figure.suptitle(text, fontsize=11.5)
    figure.supxlabel(where(result), fontsize=8, color='0.35')


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers, closer ones where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = math.log10(high / low)
    steps = (
        (1, 1.5, 2, 3, 4, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)
    )
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}' if value >= 10 else f'{value:g}'))
    axis.set_minor_locator(NullLocator())


class _Line(NamedTuple):
    """A line of the picture of ratios: a family's heading (no side), or a peer."""

    label: str
    side: Dict[str, Any]


def _ratio_lines(result: Result) -> List[_Line]:
    """Lines of the picture of ratios; none where no peer has a ratio."""
    lines: List[_Line] = []
    families: Dict[str, List[_Line]] = {}
    for row in overview(result):
        family, case = row['name'].split('/', 1)
        for name, side in row['sides'].items():
            if name != 'ours' and ('speed' in side or failure(side)):
                families.setdefault(family, []).append(_Line(f'{case}  vs  {name}', side))
    for family, found in families.items():
        lines += [_Line(family, {}), *found]
    return lines if any('speed' in line.side for line in lines) else []


def speed(result: Result, file: Path) -> bool:
    """Draw the ratio to every peer as a bar, with the spread over the rounds.

    Args:
        result: What a result file holds.
        file: PNG to write.

    Returns:
        Whether there was something to draw; otherwise nothing is written.
    """
    lines = _ratio_lines(result)
    if not lines:
        return False
    from matplotlib.patches import Patch

    bars = [line.side['speed'] for line in lines if 'speed' in line.side]
    low, high = min(1.0, *(b['p10'] for b in bars)), max(1.0, *(b['p90'] for b in bars))
    figure = new_figure(WIDTH, 1.5 + 0.21 * len(lines))
    axis = figure.subplots()
    if high / low > 4:
        axis.set_xscale('log')
        axis.set_xlim(low / 1.15, high * 1.15)
        _plain_ticks(axis.xaxis, low, high)
    else:
        axis.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for y, line in enumerate(lines):
        _bar(axis, y, line)
    axis.axvline(1, color='black', lw=1)
    axis.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8.5)
    for label, line in zip(axis.get_yticklabels(), lines, strict=True):
        label.set_fontweight('normal' if line.side else 'bold')
    axis.set_ylim(len(lines) - 0.4, -0.7)
    axis.tick_params(axis='y', length=0)
    axis.tick_params(axis='x', labelsize=8.5)
    axis.grid(axis='x', alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.set_xlabel('time of the peer over ours; right of 1 ours is faster', fontsize=9)
    handles = [Patch(color=SAME, label='same result')]
    if any('speed' in line.side and not is_same(line.side) for line in lines):
        handles.append(Patch(fc=YARDSTICK, ec='white', hatch='////', label='yardstick: another computation'))
    axis.legend(handles=handles, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, fontsize=8.5, frameon=False)
    _title(figure, 'Speed against the peers: median of the rounds, 10th to 90th percentile', result)
    figure.savefig(file, dpi=DPI)
    return True


def _bar(axis: Any, y: int, line: _Line) -> None:
    """One peer: its bar from 1, or in words why it has none."""
    if 'speed' not in line.side:
        axis.text(1, y, f'  {failure(line.side)}', va='center', fontsize=8.5, color='#A03000')
        return
    ratio = line.side['speed']
    style = dict(color=SAME) if is_same(line.side) else dict(fc=YARDSTICK, ec='white', hatch='////', lw=0)
    axis.barh(y, ratio['median'] - 1, left=1, height=0.66, **style)
    spread = [[ratio['median'] - ratio['p10']], [ratio['p90'] - ratio['median']]]
    axis.errorbar(ratio['median'], y, xerr=spread, color='black', lw=1, capsize=2)
    axis.annotate(
        f'{ratio["median"]:.2f}×',
        (1, y),
        (4, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords='offset points',
        va='center_baseline',
        fontsize=8.5,
        annotation_clip=False,
    )


def _over(
    axis: Any, rows: List[Row], key: Callable[[Dict[str, Any]], float], styles: Dict[str, Tuple[str, str]]
) -> None:
    """Lines of all sides over the axis of a group, both logarithmic; a side that fails is marked at the upper edge."""
    shown: List[float] = []
    failed = _failures(rows, list(styles))
    for name, (colour, marker) in styles.items():
        points = [(r['over']['value'], key(r['sides'][name])) for r in rows if name in r['sides']]
        points = [(x, y) for x, y in points if y > 0]
        shown += [y for _, y in points]
        if points or name in failed:  # without a line the legend still says whose the marks are
            axis.plot(
                [x for x, _ in points], [y for _, y in points], color=colour, marker=marker, ms=5, lw=1.6, label=name
            )
    axis.set(xscale='log', yscale='log')
    values = [row['over']['value'] for row in rows]
    if shown:
        low, high = min(shown), max(shown)
        span = max(high / low, 4.0)
        axis.set_ylim(low / span**0.06, high * span ** (0.06 + 0.11 * len(failed)))
        _plain_ticks(axis.yaxis, low, high)
    if failed:
        axis.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    for i, (name, (reason, places)) in enumerate(failed.items()):
        _mark(axis, 0.94 - 0.09 * i, places, reason, styles[name], values)
    _places(axis, rows[0]['over']['axis'], values)
    axis.grid(alpha=0.3)


def _mark(
    axis: Any, height: float, places: List[int], text: str, style: Tuple[str, str], values: Sequence[int]
) -> None:
    """Hollow markers where a side failed, and the reason beside the first of them, where there is room."""
    colour, marker = style
    edge = dict(color=colour, transform=axis.get_xaxis_transform())
    axis.plot(places, [height] * len(places), ls='none', marker=marker, mfc='white', ms=6, mew=1.5, **edge)
    before = 2 * values.index(places[0]) >= len(values)
    axis.annotate(
        text,
        (places[0], height),
        (-7 if before else 7, 0),
        xycoords=axis.get_xaxis_transform(),
        textcoords='offset points',
        ha='right' if before else 'left',
        va='center',
        fontsize=8.5,
        color=colour,
        bbox=dict(fc='white', ec='none', pad=1),
    )


def _failures(rows: List[Row], sides: Sequence[str]) -> Dict[str, Tuple[str, List[int]]]:
    """Of the sides that fail at some places: why, and where."""
    found: Dict[str, Tuple[str, List[int]]] = {}
    for name in sides:
        failing = [row for row in rows if failure(row['sides'].get(name, {})) not in ('', 'not installed')]
        if failing:
            found[name] = (failure(failing[0]['sides'][name]), [row['over']['value'] for row in failing])
    return found


def _places(axis: Any, over: str, values: List[int]) -> None:
    """Ticks where something was measured, as many as have room."""
    from matplotlib.ticker import NullLocator

    kept = values[:: math.ceil(len(values) / 5)]
    axis.set_xticks(kept, [at(over, value) for value in kept])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8.5)


def _legend(axis: Any, slopes: Dict[str, Any]) -> None:
    """Names of the lines above a panel, with the slope of each that has one."""
    handles, labels = axis.get_legend_handles_labels()
    labels = [f'{name} ({slopes[name]:.2f})' if name in slopes else name for name in labels]
    place = dict(loc='lower left', bbox_to_anchor=(-0.03, 0.99), ncols=2, columnspacing=0.7)
    axis.legend(handles, labels, fontsize=8, frameon=False, borderpad=0.2, handlelength=1.2, **place)


def _styles(rows: Sequence[Row]) -> Dict[str, Tuple[str, str]]:
    return {name: STYLES[i % len(STYLES)] for i, name in enumerate(names(rows))}


def _time(side: Dict[str, Any]) -> float:
    return side['ms']['median'] if 'ms' in side else math.nan


def _memory(side: Dict[str, Any]) -> float:
    return side.get('peak_mib', math.nan)


def _resolutions(result: Result) -> Dict[str, List[Row]]:
    found = groups(result['rows'])
    return {
        name: found[name] for name in RESOLUTION if any('ms' in row['sides']['ours'] for row in found.get(name, ()))
    }


def resolution(result: Result, file: Path) -> bool:
    """Draw time and extra peak memory of the Perceiver over the size of the image.

    Args:
        result: What a result file holds.
        file: PNG to write.

    Returns:
        Whether there was something to draw; otherwise nothing is written.
    """
    chosen = _resolutions(result)
    if not chosen:
        return False
    styles = _styles([row for rows in chosen.values() for row in rows])
    figure = new_figure(WIDTH, 0.9 + 3.4 * len(chosen))
    panels = figure.subplots(len(chosen), 2, squeeze=False)
    for (name, rows), (left, right) in zip(chosen.items(), panels, strict=True):
        _over(left, rows, _time, styles)
        _over(right, rows, _memory, styles)
        _legend(left, result.get('slopes', {}).get(name, {}))
        left.set_ylabel(f'{name}\ntime, ms', fontsize=9)
        right.set_ylabel('extra peak memory, MiB', fontsize=9)
    for axis in panels[-1]:
        axis.set_xlabel('pixels of the image', fontsize=9)
    _title(
        figure, 'Time and memory over the size of the image (in brackets: slope of log time over log pixels)', result
    )
    figure.savefig(file, dpi=DPI)
    return True


def _operations(result: Result) -> Dict[Tuple[str, str], List[Row]]:
    """Rows by operation and axis."""
    return {
        tuple(name.split('/')[1:]): rows
        for name, rows in groups(result['rows']).items()
        if name in result.get('slopes', {}) and name.startswith('ops/') and name.count('/') == 2
    }


def operations(result: Result, file: Path) -> bool:
    """Draw the times of every operation over each of its axes.

    Args:
        result: What a result file holds.
        file: PNG to write.

    Returns:
        Whether there was something to draw; otherwise nothing is written.
    """
    found, slopes = _operations(result), result.get('slopes', {})
    if not found:
        return False
    lines: List[List[Tuple[str, str]]] = []
    for operation in dict.fromkeys(operation for operation, _ in found):
        own = [key for key in found if key[0] == operation]
        lines += [own[i : i + ABREAST] for i in range(0, len(own), ABREAST)]
    styles = _styles([row for rows in found.values() for row in rows])
    figure = new_figure(WIDTH, 0.9 + 2.5 * len(lines))
    panels = figure.subplots(len(lines), max(map(len, lines)), squeeze=False)
    for line, abreast in zip(lines, panels, strict=True):
        for axis in abreast[len(line) :]:
            axis.set_axis_off()
        for axis, key in zip(abreast, line, strict=False):
            _over(axis, found[key], _time, styles)
            _legend(axis, slopes['/'.join(('ops', *key))])
            variant = key[1].partition('-')[2]
            axis.set_xlabel(', '.join(filter(None, (found[key][0]['over']['axis'], variant))), fontsize=9, labelpad=1)
        abreast[0].set_ylabel(f'{line[0][0]}\nms', fontsize=9)
    _title(figure, 'Times of the operations over their axes (in brackets: slope of log time over log size)', result)
    figure.savefig(file, dpi=DPI)
    return True


class Picture(NamedTuple):
    """A picture of a result.

    Attributes:
        title: What it shows.
        select: What it shows of a result; empty where there is nothing to draw.
        draw: Draws it into a PNG, and says whether there was something to draw.
    """

    title: str
    select: Callable[[Result], Sized]
    draw: Callable[[Result, Path], bool]


PICTURES = dict(
    speed=Picture('Speed against the peers', _ratio_lines, speed),
    resolution=Picture('Time and memory over the size of the image', _resolutions, resolution),
    operations=Picture('Times of the operations over their axes', _operations, operations),
)
