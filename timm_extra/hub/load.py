"""Models from folders and repositories that are checked before they are built."""

import re
from pathlib import Path
from typing import Any, Dict, Optional

import timm
from torch import nn

from timm_extra._files import PathLike

from .checks import check_folder
from .client import Token
from .pull import fetch


def load(
    source: PathLike,
    *,
    revision: Optional[str] = None,
    token: Token = None,
    cache_dir: Optional[PathLike] = None,
    model_args: Optional[Dict[str, Any]] = None,
) -> nn.Module:
    """Load a model from a folder or a Hub repository in timm's format, trusting neither.

    As `timm.create_model('hf-hub:…', pretrained=True)` or `'local-dir:…'`, and beyond that: a download is compared with
    the hashes that the Hub states, pickles are not read, and the configuration and the weights are compared before a
    model is built. Without the Hub (`HF_HUB_OFFLINE`) what the cache has is checked and loaded.

    Args:
        source: Folder that exists, or repository, as `owner/name`.
        revision: Branch, tag or commit of the repository.
        token: Access token, `False` for none; as stored by `hf auth login` if not given.
        cache_dir: Folder of the downloads; huggingface_hub's if not given.
        model_args: Arguments of the model that shall differ from those saved, as `dict(num_classes=10)`.

    Returns:
        The model, in training mode as timm creates it.

    Raises:
        HubError: The repository cannot be had, or a file is damaged.
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: The content is refused; the message says what of it, and what to import if a plugin is missing.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not re.fullmatch(r'\w[\w.-]*/[\w.-]+', str(source)):
            raise FileNotFoundError(f'there is no folder {str(source)!r}, and a repository is named owner/name')
        folder = fetch(str(source), revision, token, cache_dir)
    check_folder(folder)
    try:
        return timm.create_model(f'local-dir:{folder}', pretrained=True, **(model_args or {}))
    except Exception as e:  # what values of a wrong kind raise is of any type
        if isinstance(e, ValueError) or (model_args and isinstance(e, TypeError)):  # said well, or the caller's
            raise
        raise ValueError(f'{str(source)!r} cannot be loaded: {type(e).__name__}: {e}') from e
