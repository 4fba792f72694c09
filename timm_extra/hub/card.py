"""Model cards: what a repository's page on the Hub says."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from timm_extra.models.info import PLUGIN, count, input_size, modality

from .provenance import Provenance
from .usage import PLACEHOLDER, Taken, usage

Metrics = Mapping[str, Mapping[str, float]]
# how the Hub names a metric, and what readers see
METRICS = {'top1': ('accuracy', 'Top-1 accuracy'), 'top5': ('accuracy', 'Top-5 accuracy')}
MARK = '<!-- Written by timm-extra, which renews it until it is edited: {} -->'
# tasks of the Hub, for classes and for features; it has none for point clouds and tokens
TASKS = {
    'image': ('image-classification', 'image-feature-extraction'),
    'audio': ('audio-classification', 'feature-extraction'),
    'video': ('video-classification', 'feature-extraction'),
    'point cloud': (None, 'feature-extraction'),
    'tokens': (None, 'feature-extraction'),
}
INPUTS = {
    'image': 'images of {} (channels × height × width)',
    'audio': 'audio of {} (channels × samples)',
    'video': 'video of {} (channels × frames × height × width)',
    'point cloud': 'point clouds of {} (points × channels, the first three of them coordinates)',
    'tokens': 'tokens of {} (number × channels)',
}
PREPROCESSING = {
    'image': ('mean', 'std', 'interpolation', 'crop_pct'),
    'audio': (),
    'video': ('mean', 'std'),
    'point cloud': (),
    'tokens': (),
}


@dataclass(frozen=True)
class _Saved:
    """A saved model.

    Attributes:
        config: Its configuration.
        takes: What goes in and comes out.
        provenance: How it was trained, if that is known.
        params: Number of parameters.
        gmacs: Of one input; None where that cannot be counted.
    """

    config: Dict[str, Any]
    takes: Taken
    provenance: Optional[Provenance]
    params: int
    gmacs: Optional[float]

    @property
    def cfg(self) -> Dict[str, Any]:
        """What timm calls `pretrained_cfg`."""
        return self.config['pretrained_cfg']

    @property
    def ours(self) -> bool:
        """Whether this package registers the model."""
        return self.config.get('timm_plugin') == PLUGIN


def card(
    folder: Path,
    repo_id: str = PLACEHOLDER,
    *,
    training_data: Optional[str] = None,
    metrics: Optional[Metrics] = None,
) -> str:
    """Write the card of a saved model.

    Args:
        folder: Folder with the model's config.json.
        repo_id: Repository that the usage names.
        training_data: What it was trained on and how, as Markdown.
        metrics: Values by dataset and metric, as `{'ImageNet-1k': {'top1': 81.9}}`.

    Returns:
        Markdown, with the Hub's metadata in front. All that can be written again from the folder, and so what has
        neither `training_data` nor `metrics`, ends with a mark that `is_generated` knows.
    """
    saved = _read(folder)
    name = saved.config['architecture'] if repo_id == PLACEHOLDER else repo_id.split('/')[-1]
    training = [str(saved.provenance) if saved.provenance else '', training_data or '']
    parts = [
        f'# {name}\n\n{_summary(saved)}',
        usage(saved.takes, repo_id, saved.ours),
        _facts(saved),
        '## Training\n\n' + ('\n\n'.join(t for t in training if t) or 'Not stated.'),
        _evaluation(metrics) if metrics else '',
        f'## Licence\n\n{saved.cfg.get("license", "Not stated.")}',
        _citation(saved.cfg),
    ]
    head = _metadata(saved, name, metrics).to_yaml(line_break='\n')
    text = f'---\n{head}\n---\n' + '\n\n'.join(p for p in parts if p) + '\n'
    return text if training_data or metrics else f'{text}\n{_mark(text)}\n'


def is_generated(text: str) -> bool:
    """Whether `card` wrote all of a card, unchanged since."""
    body, separator, mark = text.rstrip().rpartition('\n\n')
    return bool(separator) and mark == _mark(f'{body}\n')


def _mark(text: str) -> str:
    return MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def _read(folder: Path) -> _Saved:
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    with torch.device('meta'):
        model = timm.create_model(f'local-dir:{folder}').eval()
    query_dim = 0
    decodes = getattr(model, 'decoder', None) is not None and getattr(model, 'query_type', '') == 'learned'
    if decodes and model.query is None:
        query_dim = model.head_hidden_size  # a Perceiver IO without queries of its own
    try:
        params, gmacs = count(model)
    except Exception:  # of any type: a size in the configuration that it does not take, values that meta tensors lack
        params, gmacs = sum(p.numel() for p in model.parameters()), None
    takes = Taken(modality(model), input_size(model), config['num_classes'], _outputs(model, query_dim), query_dim)
    return _Saved(config, takes, Provenance.read(config), params, gmacs)


def _outputs(model: nn.Module, query_dim: int) -> Optional[Tuple[int, ...]]:
    """Shape of the outputs of one input, None where the meta device cannot say."""
    queries = dict(queries=torch.empty(1, query_dim, device='meta')) if query_dim else {}
    try:
        with torch.inference_mode():
            return tuple(model(torch.empty(1, *input_size(model), device='meta'), **queries).shape)
    except Exception:  # as where parameters are counted
        return None


def _task(takes: Taken) -> Optional[str]:
    """What the Hub calls the task; None where it has no name for it."""
    classes, features = TASKS[takes.modality]
    if not takes.num_classes:
        return features
    return classes if takes.outputs is None or len(takes.outputs) == 2 else None


def _metadata(saved: _Saved, name: str, metrics: Optional[Metrics]) -> ModelCardData:
    task = _task(saved.takes)
    results = [
        EvalResult(
            task_type=task or 'other',
            dataset_type=re.sub(r'[^a-z0-9]+', '-', dataset.lower()).strip('-'),
            dataset_name=dataset,
            metric_type=METRICS.get(metric, (metric, metric))[0],
            metric_name=METRICS.get(metric, (metric, metric))[1],
            metric_value=value,
        )
        for dataset, values in (metrics or {}).items()
        for metric, value in values.items()
    ]
    ours = ['timm-extra'] if saved.ours else []
    arxiv = [f'arxiv:{number}' for number in _arxiv(saved.cfg)]
    if saved.provenance and saved.provenance.arxiv:
        arxiv.append(f'arxiv:{saved.provenance.arxiv}')
    what = task or saved.takes.modality.replace(' ', '-')
    return ModelCardData(
        library_name='timm',
        license=saved.cfg.get('license'),
        pipeline_tag=task,
        base_model=saved.provenance and saved.provenance.hub_base,
        tags=[what, 'timm', *ours, *arxiv],
        model_name=name,
        eval_results=results or None,
    )


def _summary(saved: _Saved) -> str:
    takes = saved.takes
    gives = f'{takes.num_classes} classes' if takes.num_classes else 'no classifier: it gives features'
    if takes.num_classes and _task(takes) is None and takes.outputs and len(takes.outputs) > 2:
        gives = f'{takes.num_classes} values for each of its outputs'
    size = INPUTS[takes.modality].format('×'.join(map(str, takes.size)))
    return f'A timm model with {gives}, for {size}.'


def _facts(saved: _Saved) -> str:
    config, takes = saved.config, saved.takes
    rows = {'architecture': f'`{config["architecture"]}`'}
    if config.get('model_args'):
        rows['arguments'] = f'`{json.dumps(config["model_args"])}`'
    rows['parameters'] = f'{saved.params / 1e6:.2f} M'
    if saved.gmacs is not None:
        rows['GMACs'] = f'{saved.gmacs:.2f}'
    rows['input'] = '×'.join(map(str, takes.size))
    prepared = [f'{key} {saved.cfg[key]}' for key in PREPROCESSING[takes.modality] if key in saved.cfg]
    if prepared:
        rows['preprocessing'] = ', '.join(prepared)
    rows['features'] = str(config['num_features'])
    rows['classes'] = str(config['num_classes'])
    return '## Model\n\n| | |\n|---|---|\n' + '\n'.join(f'| {key} | {value} |' for key, value in rows.items())


def _evaluation(metrics: Metrics) -> str:
    rows = [
        f'| {dataset} | {METRICS.get(metric, (metric, metric))[1]} | {value:g} |'
        for dataset, values in metrics.items()
        for metric, value in values.items()
    ]
    return '## Evaluation\n\n| dataset | metric | value |\n|---|---|---|\n' + '\n'.join(rows)


def _arxiv(cfg: Dict[str, Any]) -> List[str]:
    ids = cfg.get('paper_ids') or ()
    ids = [ids] if isinstance(ids, str) else list(ids)
    return [m[1] for m in (re.fullmatch(r'(?i)arxiv:([\w./-]+)', i) for i in ids) if m]


def _citation(cfg: Dict[str, Any]) -> str:
    entries = [
        f'@misc{{arXiv:{number},\n'
        + (f'  title = {{{cfg["paper_name"]}}},\n' if cfg.get('paper_name') else '')
        + f'  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n  url = {{https://arxiv.org/abs/{number}}}\n}}'
        for number in _arxiv(cfg)
    ]
    return '## Citation\n\n```bibtex\n' + '\n'.join(entries) + '\n```' if entries else ''
