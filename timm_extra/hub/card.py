"""Model cards: what a repository's page on the Hub says."""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from timm_extra.models.info import PLUGIN, count, input_size

PLACEHOLDER = 'OWNER/NAME'
Metrics = Mapping[str, Mapping[str, float]]
# how the Hub names a metric, and what readers see
METRICS = {'top1': ('accuracy', 'Top-1 accuracy'), 'top5': ('accuracy', 'Top-5 accuracy')}


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
        Markdown, with the Hub's metadata in front.
    """
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    cfg = config['pretrained_cfg']
    with torch.device('meta'):
        model = timm.create_model(f'local-dir:{folder}')
    name = config['architecture'] if repo_id == PLACEHOLDER else repo_id.split('/')[-1]
    parts = [
        f'# {name}\n\n{_summary(config, model)}',
        _usage(config, repo_id),
        _facts(config, model),
        f'## Training data\n\n{training_data or "Not stated."}',
        _evaluation(metrics) if metrics else '',
        f'## Licence\n\n{cfg.get("license", "Not stated.")}',
        _citation(cfg),
    ]
    head = _metadata(config, name, metrics).to_yaml(line_break='\n')
    return f'---\n{head}\n---\n' + '\n\n'.join(p for p in parts if p) + '\n'


def _metadata(config: Dict[str, Any], name: str, metrics: Optional[Metrics]) -> ModelCardData:
    cfg = config['pretrained_cfg']
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=re.sub(r'[^a-z0-9]+', '-', dataset.lower()).strip('-'),
            dataset_name=dataset,
            metric_type=METRICS.get(metric, (metric, metric))[0],
            metric_name=METRICS.get(metric, (metric, metric))[1],
            metric_value=value,
        )
        for dataset, values in (metrics or {}).items()
        for metric, value in values.items()
    ]
    task = 'image-classification' if config['num_classes'] else 'image-feature-extraction'
    return ModelCardData(
        library_name='timm',
        license=cfg.get('license', 'other'),
        pipeline_tag=task,
        tags=[task, 'timm', *(['timm-extra'] if _from_plugin(config) else []), *(f'arxiv:{i}' for i in _arxiv(cfg))],
        model_name=name,
        eval_results=results or None,
    )


def _from_plugin(config: Dict[str, Any]) -> bool:
    return config.get('timm_plugin') == PLUGIN


def _summary(config: Dict[str, Any], model: nn.Module) -> str:
    gives = f'{config["num_classes"]} classes' if config['num_classes'] else 'no classifier: it gives features'
    size = input_size(model)
    takes = 'images of {} (channels × height × width)' if len(size) == 3 else 'inputs of {}'
    return f'A timm model with {gives}, for {takes.format("×".join(map(str, size)))}.'


def _usage(config: Dict[str, Any], repo_id: str) -> str:
    ours = _from_plugin(config)
    plugin = f'import {PLUGIN}  # registers the model\n' if ours else ''
    auto = 'AutoModelForImageClassification' if config['num_classes'] else 'AutoModel'
    checked = ''
    if ours:
        checked = (
            '\n\nThe same after comparing the hashes of the files with those that the Hub states:\n\n'
            f"```python\nfrom {PLUGIN} import hub\n\nmodel = hub.load('{repo_id}').eval()\n```"
        )
    return f"""## Use

```bash
pip install timm{' timm-extra' if ours else ''}
```

```python
import timm
{plugin}
model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()  # or 'local-dir:PATH'
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```{checked}

In transformers:

```python
{plugin}from transformers import {auto}

model = {auto}.from_pretrained('{repo_id}').eval()
```"""


def _facts(config: Dict[str, Any], model: nn.Module) -> str:
    cfg = config['pretrained_cfg']
    rows = {'architecture': f'`{config["architecture"]}`'}
    if config.get('model_args'):
        rows['arguments'] = f'`{json.dumps(config["model_args"])}`'
    try:
        params, gmacs = count(model)
    except Exception:  # of any type: a size in the configuration that it does not take, values that meta tensors lack
        params, gmacs = sum(p.numel() for p in model.parameters()), None
    rows['parameters'] = f'{params / 1e6:.2f} M'
    if gmacs is not None:
        rows['GMACs'] = f'{gmacs:.2f}'
    rows['input'] = '×'.join(map(str, input_size(model)))
    rows['preprocessing'] = ', '.join(
        f'{key} {cfg[key]}' for key in ('mean', 'std', 'interpolation', 'crop_pct') if key in cfg
    )
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
