"""Models to the Hub."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from torch import nn

from .card import PLACEHOLDER, Metrics, card
from .checks import CARD, CONFIG, WEIGHTS, check_folder
from .client import HubError, Token, call, redact
from .save import save


def push(
    model: Union[nn.Module, str, Path],
    repo_id: str,
    *,
    private: Optional[bool] = None,
    revision: Optional[str] = None,
    create_pr: bool = False,
    commit_message: Optional[str] = None,
    token: Token = None,
    training_data: Optional[str] = None,
    metrics: Optional[Metrics] = None,
    model_config: Optional[Dict[str, Any]] = None,
    model_args: Optional[Dict[str, Any]] = None,
    data_config: Optional[Dict[str, Any]] = None,
) -> str:
    """Push a model to the Hub, in one commit: what fails leaves the repository as it was.

    A card on the Hub is kept, unless the folder has one of its own or this call says what the model was trained on or
    reaches. Pickles and other files in a folder stay where they are.

    Args:
        model: Model made by `timm.create_model`, folder of `save` or `pull`, or folder of a pretraining.
        repo_id: Repository, as `owner/name`; made if absent, except for a pull request.
        private: Make the repository a private one; one that exists and is public is refused.
        revision: Branch, made if absent.
        create_pr: Propose the commit as a pull request.
        commit_message: First line of the commit.
        token: Access token; as stored by `hf auth login` if not given.
        training_data: What it was trained on and how, as Markdown for the card.
        metrics: Values by dataset and metric for the card, as `{'ImageNet-1k': {'top1': 81.9}}`.
        model_config: As for `save`, for models.
        model_args: As for `save`, for models.
        data_config: As for `save`, for models.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        HubError: The Hub refuses or cannot be reached.
        FileNotFoundError: The folder lacks a file.
        ValueError: `repo_id` is no owner/name, the model cannot be saved, the folder is refused, or something to
            publish holds an access token.
    """
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise ValueError(f'a pull request is made to {constants.DEFAULT_REVISION}, not to revision={revision!r}')
    if repo_id.count('/') != 1:
        raise ValueError(f'repo_id has to be owner/name, not {repo_id!r}')
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            aside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='pushing-')))
            (aside / CARD).touch()  # kept by `save`: the card is written once, below
            folder = save(model, aside, model_config=model_config, model_args=model_args, data_config=data_config)
        else:
            if model_config or model_args or data_config:
                raise ValueError('model_config, model_args and data_config are for models: a folder has them')
            folder = _saved(Path(model))
        own, text = _card(folder, repo_id, training_data, metrics)
        config = (folder / CONFIG).read_text(encoding='utf-8')
        _check_tokens({CONFIG: config, CARD: text, 'commit_message': commit_message or ''}, token)

        api = HfApi(token=token)
        failed = f'nothing was pushed to {repo_id}: '
        if not create_pr:
            _prepare(api, repo_id, private, revision, token, failed)
        keep = not (own or training_data or metrics) and call(
            lambda: api.file_exists(repo_id, CARD, revision=revision), repo_id, token, failed=failed
        )

        def commit() -> CommitInfo:
            operations = [CommitOperationAdd(name, folder / name) for name in (CONFIG, WEIGHTS)]
            if not keep:
                operations.append(CommitOperationAdd(CARD, text.encode()))
            message = commit_message or f'Push {json.loads(config)["architecture"]}'
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
            )

        # once the connection breaks, a commit may have been made or not: a second one is then empty, and left out
        done = call(commit, repo_id, token, failed=failed, repeatable=not create_pr)
    return str(done.pr_url if create_pr else done.commit_url)


def _saved(folder: Path) -> Path:
    """The folder with the model: the one given, or the one that a pretraining wrote in it."""
    if not (folder / CONFIG).is_file() and (folder / 'model' / CONFIG).is_file():
        folder = folder / 'model'
    check_folder(folder)
    return folder


def _card(folder: Path, repo_id: str, training_data: Optional[str], metrics: Optional[Metrics]) -> Tuple[bool, str]:
    """The text of the card, and whether it is one that somebody wrote."""
    file = folder / CARD
    text = file.read_text(encoding='utf-8') if file.is_file() else ''
    if text and text != card(folder):
        if training_data or metrics:
            raise ValueError(f'{file} is your own: write training data and metrics there, or remove it')
        return True, text.replace(PLACEHOLDER, repo_id)
    return False, card(folder, repo_id, training_data=training_data, metrics=metrics)


def _check_tokens(texts: Dict[str, str], token: Token) -> None:
    for name, text in texts.items():
        if redact(text, token) != text:
            raise ValueError(f'{name} holds an access token and is not pushed')


def _prepare(
    api: HfApi, repo_id: str, private: Optional[bool], revision: Optional[str], token: Token, failed: str
) -> None:
    """Make the repository and the branch if they are absent."""
    call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id, token, failed=failed)
    if private and not call(lambda: api.model_info(repo_id), repo_id, token, failed=failed).private:
        raise HubError(f'{failed}it exists and is public; make it private in its settings first')
    if revision and revision != constants.DEFAULT_REVISION and not revision.startswith('refs/'):
        call(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id, token, failed=failed)
