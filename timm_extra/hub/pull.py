"""Models from the Hub."""

import shutil
from pathlib import Path
from typing import Any, List, Optional

from huggingface_hub import constants, hf_hub_download

from timm_extra._files import PathLike, atomic_folder

from .checks import CARD, CONFIG, LARGEST_CONFIG, PICKLES, WEIGHTS, another_model, read_config, read_header
from .client import HubError, Token, cached, call, download, listing
from .save import FORCE, keeps_card

PULLED = (CARD, 'LICENSE', WEIGHTS, CONFIG)


def pull(
    repo_id: str,
    dest: PathLike,
    *,
    revision: Optional[str] = None,
    token: Token = None,
    cache_dir: Optional[PathLike] = None,
    force: bool = False,
) -> Path:
    """Copy a model from the Hub to a folder, after comparing its files with the hashes that the Hub states.

    The configuration, the weights as safetensors, the card and the licence; never a pickle. Written aside and moved
    into place at the end: what fails leaves the folder as it was. A card in the folder that was written or edited by
    hand and is not the repository's is kept, with a warning.

    Args:
        repo_id: Repository, as `owner/name`.
        dest: Folder to write to, made if absent.
        revision: Branch, tag or commit.
        token: Access token, `False` for none; as stored by `hf auth login` if not given.
        cache_dir: Folder of the downloads; huggingface_hub's if not given.
        force: Replace another model that the folder holds, and its card.

    Returns:
        The folder, for `load` or `timm.create_model('local-dir:…')`.

    Raises:
        FileExistsError: `dest` holds a model of another architecture or of other classes.
        HubError: The repository cannot be had, or a file is damaged.
        ValueError: A file is refused.
    """
    source, dest = fetch(repo_id, revision, token, cache_dir), Path(dest)
    if not force and (other := another_model(dest, read_config(source / CONFIG))):
        raise FileExistsError(f'{other}: {FORCE}')
    names = [name for name in PULLED if (source / name).is_file()]
    if CARD in names and not force and not _same(source / CARD, dest / CARD) and keeps_card(dest):
        names.remove(CARD)
    with atomic_folder(dest, last=[WEIGHTS, CONFIG]) as aside:  # the configuration names the rest
        for name in names:
            shutil.copyfile(source / name, aside / name)
    return dest


def _same(one: Path, two: Path) -> bool:
    return two.is_file() and one.read_bytes() == two.read_bytes()


def fetch(repo_id: str, revision: Optional[str], token: Token, cache_dir: Optional[PathLike]) -> Path:
    """Get a model into the cache.

    Returns:
        The folder of the cache that holds its files, compared with the hashes that the Hub states.

    Raises:
        HubError: The repository cannot be had, or a file is damaged.
        ValueError: A file is refused.
    """
    cache_dir = Path(cache_dir) if cache_dir else None
    if constants.HF_HUB_OFFLINE:
        found = [cached(repo_id, name, revision, cache_dir) for name in (CONFIG, WEIGHTS)]
        if not all(found):
            raise HubError(f'{repo_id} is not in the cache, and HF_HUB_OFFLINE is set: unset it to reach the Hub')
        folder = found[0].parent
    else:
        there = listing(repo_id, revision, token)
        _check_listing(repo_id, list(there.files), there.files.get(CONFIG))
        for name in PULLED:
            if name in there.files:
                folder = download(repo_id, there.commit, there.files[name], token, cache_dir).parent
        if revision != there.commit:  # leaves a note of what the branch is, for when the Hub is out of reach
            call(
                lambda: hf_hub_download(repo_id, CONFIG, revision=revision, token=token, cache_dir=cache_dir),
                repo_id,
                token,
            )
    read_header(folder / WEIGHTS)
    return folder


def _check_listing(repo_id: str, names: List[str], config: Any) -> None:
    missing = [n for n in (CONFIG, WEIGHTS) if n not in names]
    if missing:
        pickles = [n for n in names if n.endswith(PICKLES)]
        other = f'; its pickles ({", ".join(pickles)}) are not read' if pickles else ''
        raise HubError(f'{repo_id} holds no {missing[0]}{other}')
    if config.size is not None and config.size > LARGEST_CONFIG:
        raise ValueError(f'{repo_id} is refused: a {CONFIG} of {config.size:,} bytes')
