"""What the project asked of itself, beside what was measured."""

from typing import Any, Dict, List, Optional, Tuple

from .rows import Row, table_cell
from .rows import reason as reason_of

GOALS = {  # how it is stated, and how what was measured is
    'speed': ('at least {:g}× as fast', '{:.2f}×'),
    'memory': ('extra peak memory of the peer at least {:g}× ours', '{:.1f}×'),
    'ms': ('at most {:g} ms', '{:.1f} ms'),
    'slope': ('time grows at most to the power of {:g}', '{:.2f}'),
    'peak_gib': ('at most {:g} GiB of extra peak memory', '{:.2f} GiB'),
}
SHORT = {  # why, where a figure is not reached: by case and kind
    ('ceit/small/inference/fused', 'speed'): 'most of the time goes into matrix products, the same on both sides',
    ('perceiver/io_base/inference', 'speed'): (
        'the self-attention of the latents, the same products on both sides, takes nineteen twentieths of the time'
    ),
    ('perceiver/io_base_learned/inference', 'speed'): (
        'as for the Fourier model; and features without axes leave the cross-attend to matrix products as well'
    ),
    ('perceiver/io_base/cross-attend', 'speed'): (
        'the peer multiplies matrices, ours passes over scores in cache: the better a machine multiplies, the smaller '
        'the ratio; 6.02 to 6.62 in three runs within the hour where those products took 360 to 440 ms'
    ),
    ('ssl/byol/step', 'speed'): 'equal within the noise of this run; 0.9514 in the run before, of the same code',
    ('ssl/simsiam/step', 'speed'): 'networks and heads, nine tenths of the step, are the same on both sides',
    ('ssl/moving-average', 'speed'): 'bound by memory, as the copy beside it shows',
}
AGAINST_PEERS = ('speed', 'memory')  # the larger the better; of the others, the smaller


def _measured(one: Dict[str, Any], row: Row, slopes: Dict[str, Any]) -> Tuple[Optional[float], str]:
    """The figure asked for, or why there is none."""
    ours, peer = row['sides']['ours'], row['sides'].get(one['peer'], {})
    needed = ['ours', *([one['peer']] if one['what'] in AGAINST_PEERS else [])]
    if one['what'] == 'slope':
        group = slopes.get(row['name'].rsplit('/', 1)[0], {})
        return (group['ours'], '') if 'ours' in group else (None, 'fewer than three sizes have a time')
    for name in needed:
        reason = reason_of(row, name) if name in row['sides'] else f'there is no side {name!r}'
        if reason:
            return None, f'{name}: {reason}'
    if one['what'] == 'ms':
        return ours['ms']['median'], ''
    if one['what'] == 'speed':
        return peer['speed']['median'], ''
    for name in needed:
        if 'peak_mib' not in row['sides'][name]:
            return None, f'{name}: {row["sides"][name].get("memory_failed", "memory was not measured")}'
    if one['what'] == 'peak_gib':
        return ours['peak_mib'] / 1024, ''
    return peer['peak_mib'] / max(ours['peak_mib'], 0.1), ''  # what is stated is rounded to 0.1


def _stated(form: str, value: float, goal: float) -> str:
    """A figure, with more digits where it would look like the goal that it is not."""
    text = form.format(value)
    if text != form.format(goal) or value == goal:
        return text
    return form.replace('.1f', '.3f').replace('.2f', '.4f').format(value)


def section(rows: List[Row], slopes: Dict[str, Any]) -> List[str]:
    """What the project asked of itself, what came out, and why where that falls short."""
    lines, met, unknown = [], 0, 0
    for row in rows:
        for one in row.get('asked', ()):
            wanted, stated = GOALS[one['what']]
            value, reason = _measured(one, row, slopes)
            if value is None:
                unknown += 1
                found, verdict = f'not measured: {reason}', '–'
            else:
                good = value >= one['value'] if one['what'] in AGAINST_PEERS else value <= one['value']
                met += good
                found = _stated(stated, value, one['value'])
                why = SHORT.get((row['name'], one['what']), '')
                verdict = 'yes' if good else ': '.join(filter(None, ('no', why)))
            cells = [f'`{row["name"]}`', one['peer'] or '–', wanted.format(one['value']), found, verdict]
            lines.append(f'| {" | ".join(map(table_cell, cells))} |')
    if not lines:
        return []
    said = f'{met} of {len(lines)} met' + (f', {unknown} not measured' if unknown else '') + '.'
    head = [
        '',
        '## What was asked',
        '',
        said,
        '',
        '| case | against | asked | measured | met |',
        '|---|---|---|---|---|',
    ]
    return [*head, *lines]
