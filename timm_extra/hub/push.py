"""Models to the Hub."""

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, TypeVar, Union

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from torch import nn

from .card import Metrics, card, is_generated
from .checks import CARD, CONFIG, WEIGHTS, check_folder
from .client import HubError, Token, call, redact
from .save import save
from .usage import PLACEHOLDER

T = TypeVar('T')


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

    A card on the Hub is renewed if it says what the model's files say and no more, and else kept, unless the folder has
    one of its own or this call says what the model was trained on or reaches. Pickles and other files in a folder stay
    where they are.

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
    saving = dict(model_config=model_config, model_args=model_args, data_config=data_config)
    target = _Target(HfApi(token=token), repo_id, revision, create_pr, token)
    with _folder_of(model, saving) as folder:
        own, text = _card(folder, repo_id, training_data, metrics)
        config = (folder / CONFIG).read_text(encoding='utf-8')
        _check_tokens({CONFIG: config, CARD: text, 'commit_message': commit_message or ''}, token)
        if not create_pr:
            target.prepare(private)
        files = {name: folder / name for name in (CONFIG, WEIGHTS)}
        if own or training_data or metrics or is_generated(target.card() or text):
            files[CARD] = text.encode()
        return target.commit(files, commit_message or f'Push {json.loads(config)["architecture"]}')


@contextlib.contextmanager
def _folder_of(model: Union[nn.Module, str, Path], saving: Dict[str, Any]) -> Iterator[Path]:
    """The folder of a saved model, or one of a moment for a model in memory, saved with the arguments `saving`."""
    if not isinstance(model, nn.Module):
        if any(saving.values()):
            raise ValueError(f'{", ".join(saving)} are for models: a folder has them')
        yield _saved(Path(model))
        return
    with tempfile.TemporaryDirectory(prefix='pushing-') as aside:
        yield save(model, aside, **saving)


@dataclass(frozen=True)
class _Target:
    """A branch of a repository, or a pull request to it."""

    api: HfApi
    repo_id: str
    revision: Optional[str]
    create_pr: bool
    token: Token

    def call(self, request: Callable[[], T], repeatable: bool = True) -> T:
        """Make a request; what fails says that nothing was pushed."""
        failed = f'nothing was pushed to {self.repo_id}: '
        return call(request, self.repo_id, self.token, failed=failed, repeatable=repeatable)

    def prepare(self, private: Optional[bool]) -> None:
        """Make the repository and the branch if they are absent."""
        self.call(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
        if private and not self.call(lambda: self.api.model_info(self.repo_id)).private:
            raise HubError(
                f'nothing was pushed to {self.repo_id}: it exists and is public; make it private in its settings first'
            )
        branch = self.revision
        if branch and branch != constants.DEFAULT_REVISION and not branch.startswith('refs/'):
            self.call(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))

    def card(self) -> str:
        """The card on the Hub; empty if there is none."""

        def request() -> str:
            if not self.api.file_exists(self.repo_id, CARD, revision=self.revision):
                return ''
            with tempfile.TemporaryDirectory(prefix='card-') as aside:
                file = self.api.hf_hub_download(self.repo_id, CARD, revision=self.revision, local_dir=aside)
                return Path(file).read_text(encoding='utf-8', errors='replace')

        return self.call(request)

    def commit(self, files: Dict[str, Union[Path, bytes]], message: str) -> str:
        """Commit files; returns the URL of the commit, or of the pull request."""

        def request() -> CommitInfo:
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            return self.api.create_commit(
                self.repo_id, operations, commit_message=message, revision=self.revision, create_pr=self.create_pr
            )

        # once the connection breaks, a commit may have been made or not: a second one is then empty, and left out
        done = self.call(request, repeatable=not self.create_pr)
        return str(done.pr_url if self.create_pr else done.commit_url)


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
    if text and not is_generated(text):
        if training_data or metrics:
            raise ValueError(f'{file} is your own: write training data and metrics there, or remove it')
        return True, text.replace(PLACEHOLDER, repo_id)
    return False, card(folder, repo_id, training_data=training_data, metrics=metrics)


def _check_tokens(texts: Dict[str, str], token: Token) -> None:
    for name, text in texts.items():
        if redact(text, token) != text:
            raise ValueError(f'{name} holds an access token and is not pushed')
