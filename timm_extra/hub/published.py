"""Published weights of a model's name: whether they have to be downloaded, and whether the Hub has them."""

import os
from typing import Optional

import timm
from huggingface_hub import HfApi, try_to_load_from_cache

from .checks import WEIGHTS
from .client import Token, call

# what timm looks for in a repository, if its configuration names no other
FILES = (WEIGHTS, 'pytorch_model.bin')
OPEN_CLIP = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')


def missing_weights(name: str) -> Optional[str]:
    """The repository that timm has to download the weights of a model from.

    Args:
        name: Registered name, with or without the tag of its weights.

    Returns:
        `owner/name`; None where the cache has them, or they are not on the Hub.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id or cfg.file or (cfg.url and os.environ.get('TIMM_USE_OLD_CACHE')):
        return None
    repo_id, _, revision = cfg.hf_hub_id.partition('@')
    own = cfg.hf_hub_filename
    names = FILES if own is None else (own, f'{os.path.splitext(own)[0]}.safetensors', *OPEN_CLIP)
    found = (try_to_load_from_cache(repo_id, file, revision=revision or None) for file in names)
    return None if any(isinstance(path, str) for path in found) else repo_id


def check_repository(repo_id: str, token: Token = None) -> None:
    """Ask the Hub for a repository, which is answered, or given up, sooner than a download.

    Args:
        repo_id: Repository, as `owner/name`.
        token: Access token, `False` for none; as stored by `hf auth login` if not given.

    Raises:
        HubError: There is none, or no way to it; the message says what can be done.
    """
    call(lambda: HfApi(token=token).model_info(repo_id), repo_id, token)
