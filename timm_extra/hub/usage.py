"""The code on a model card: how to load a model, and call it with what it takes."""

from typing import NamedTuple, Optional, Tuple

from timm_extra.models.info import PLUGIN

PLACEHOLDER = 'OWNER/NAME'
MODES = {1: 'L', 3: 'RGB'}  # of images in files


class Taken(NamedTuple):
    """What goes into a model and what comes out.

    Attributes:
        modality: As in `timm_extra.models.info.modality`.
        size: Shape of one input.
        num_classes: Classes; 0 for features.
        outputs: Shape of the outputs for a batch of one; None if it is not known.
        query_dim: Channels of the queries that every call has to bring; 0 if it has to bring none.
    """

    modality: str
    size: Tuple[int, ...]
    num_classes: int
    outputs: Optional[Tuple[int, ...]]
    query_dim: int


def usage(takes: Taken, repo_id: str, ours: bool) -> str:
    """The section of a card that shows how to use a model.

    Args:
        takes: What the model takes and gives.
        repo_id: Its repository.
        ours: Whether this package registers it.

    Returns:
        Markdown.
    """
    plugin = f'import {PLUGIN}  # registers the model\n' if ours else ''
    files = takes.modality == 'image' and takes.size[0] in MODES
    picture = 'from PIL import Image\n' if files else ''
    result = 'logits' if takes.num_classes else 'features'
    shape = f'  # {takes.outputs}' if takes.outputs else ''
    queries = ', queries=queries' if takes.query_dim else ''
    code = f"""import timm
{plugin}import torch
{picture}
model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()  # or 'local-dir:PATH'
{_input(takes, files)}
with torch.inference_mode():
    {result} = model(x{queries}){shape}"""
    parts = [
        '## Use',
        f'```bash\npip install timm{" timm-extra" if ours else ""}\n```',
        f'```python\n{code}\n```',
    ]
    if ours:
        parts.append('The same after comparing the hashes of the files with those that the Hub states:')
        parts.append(f"```python\nfrom {PLUGIN} import hub\n\nmodel = hub.load('{repo_id}').eval()\n```")
    if takes.modality == 'image' and (not takes.outputs or len(takes.outputs) == 2) and not takes.query_dim:
        auto = 'AutoModelForImageClassification' if takes.num_classes else 'AutoModel'
        parts.append('In transformers:')
        load = f"model = {auto}.from_pretrained('{repo_id}').eval()"
        parts.append(f'```python\n{plugin}from transformers import {auto}\n\n{load}\n```')
    return '\n\n'.join(parts)


def _input(takes: Taken, files: bool) -> str:
    """Lines that make an input."""
    shape = ', '.join(map(str, (1, *takes.size)))
    queries = f'\nqueries = torch.randn(1, {takes.query_dim})  # what to decode' if takes.query_dim else ''
    if files:
        return (
            'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n'
            f"x = transform(Image.open('photo.jpg').convert('{MODES[takes.size[0]]}'))[None]  # ({shape}){queries}"
        )
    what = {
        'image': f'x = torch.randn({shape})  # a normalised image of {takes.size[0]} channels',
        'audio': f'x = 2 * torch.rand({shape}) - 1  # your audio: samples from -1 to 1',
        'video': f'x = torch.randn({shape})  # your frames, normalised',
        'point cloud': f'x = 2 * torch.rand({shape}) - 1  # your points: coordinates from -1 to 1',
        'tokens': f'x = torch.randn({shape})  # your tokens',
    }[takes.modality]
    return what + queries
