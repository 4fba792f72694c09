"""Requests to the Hub: repeated when what failed may pass, explained when not, with no token in the text."""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable, Dict, List, Optional, TypeVar, Union

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

T = TypeVar('T')
Token = Optional[Union[str, bool]]
ATTEMPTS = 4
PATIENCE = 20  # seconds; what took longer has been repeated by huggingface_hub itself
LONGEST_PAUSE = 300  # seconds, which is the Hub's window for counting requests
TRANSIENT = (408, 429, 500, 502, 503, 504)
NETWORK = ('httpx', 'httpx2', 'requests', 'urllib3')  # the packages whose errors huggingface_hub lets through


class HubError(RuntimeError):
    """What the Hub, or the way to it, refused; the message says what can be done."""


def call(request: Callable[[], T], repo_id: str, token: Token, *, failed: str = '', repeatable: bool = True) -> T:
    """Make a request, again and again with growing pauses while its failure may be a passing one.

    Args:
        request: Makes it.
        repo_id: Repository, for the message.
        token: Token the request is made with.
        failed: What is put in front of the message.
        repeatable: Whether it does no harm twice, when a connection breaks and its outcome is unknown.

    Returns:
        What the request returns.

    Raises:
        HubError: It failed for good.
    """
    for attempt in range(1, ATTEMPTS + 1):
        start = time.monotonic()
        try:
            return request()
        except Exception as e:
            if not _of_the_hub(e):
                raise
            error = e
        status = _status(error)
        passing = status in TRANSIENT or (status is None and repeatable and not _settled(error))
        if not passing or attempt == ATTEMPTS or time.monotonic() - start > PATIENCE:
            break
        time.sleep(_pause(error, attempt))
    message = scrub(failed + _explain(error, repo_id, token), token)
    reported = ' '.join(str(e) for e in _chain(error))
    raise HubError(message) from (error if scrub(reported, token) == reported else None)


def scrub(text: str, token: Token = None) -> str:
    """Take access tokens, and what signs URLs, out of a message."""
    text = re.sub(r'(https?://)[^\s/@]+@', r'\1***@', redact(text, token))
    return re.sub(r'(https?://[^\s?\'"]+)\?[^\s\'"]+', r'\1?***', text)


def redact(text: str, token: Token = None) -> str:
    """Take access tokens out of a text: the one given, the stored one, and what looks like one."""
    for secret in {token, get_token()}:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, '***')
    return re.sub(r'\bhf_[A-Za-z0-9]{30,}', 'hf_***', text)


def _of_the_hub(error: Exception) -> bool:
    # RuntimeError: huggingface_hub wraps failed uploads in it, hf_xet raises it
    return isinstance(error, (HfHubHTTPError, EntryNotFoundError, OSError, RuntimeError)) or _from_network(error)


def _from_network(error: BaseException) -> bool:
    return type(error).__module__.split('.')[0] in NETWORK


def _chain(error: Optional[BaseException]) -> List[BaseException]:
    found: List[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _status(error: BaseException) -> Optional[int]:
    for e in _chain(error):
        if isinstance(e, HfHubHTTPError):
            return getattr(e.response, 'status_code', None)
    return None


def _settled(error: BaseException) -> bool:
    """Whether a failure without a status is certain to come again."""
    chain = _chain(error)
    return any(isinstance(e, OfflineModeIsEnabled) for e in chain) or not any(
        _from_network(e) or isinstance(e, (ConnectionError, TimeoutError)) or 'Consistency check' in str(e)
        for e in chain
    )


def _pause(error: BaseException, attempt: int) -> float:
    answers = [getattr(e, 'response', None) for e in _chain(error)]
    headers = next((a.headers for a in answers if a is not None), {})
    limit = re.search(r';\s*r=0\s*;\s*t=(\d+)', headers.get('RateLimit', ''))  # none remain, until in t seconds
    stated = limit[1] if limit else headers.get('Retry-After', '')
    return float(min(int(stated), LONGEST_PAUSE)) if stated.isdigit() else 2.0 ** (attempt - 1)


def _explain(error: BaseException, repo_id: str, token: Token) -> str:
    status = _status(error)
    chain = _chain(error)

    def any_is(kind) -> bool:
        return any(isinstance(e, kind) for e in chain)

    if any_is(OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set: unset it to reach the Hub'
    if any_is(GatedRepoError):
        return f'{repo_id} is gated: accept its terms on its page, then use a token of that account'
    if any_is(RevisionNotFoundError):
        return f'{repo_id} has no such revision'
    if any_is(EntryNotFoundError) and not any_is(LocalEntryNotFoundError):
        return f'{repo_id} lacks a file that is needed'
    if any_is(RepositoryNotFoundError) or status == 404:
        return f'there is no repository {repo_id}, or it is private and {_who(token)} may not see it ({status})'
    if status == 401:
        return f'the Hub does not accept {_who(token)} (401): log in with `hf auth login`, or pass another token'
    if status == 403:
        return f'{_who(token)} may not do this to {repo_id} (403): it needs a token with write access to it'
    if status == 429:
        return 'too many requests (429), also after waiting: try again later'
    if status is not None and status >= 500:
        return f'the Hub fails ({status}), also after waiting: try again later'
    if status is None and any(_from_network(e) or isinstance(e, ConnectionError) for e in chain):
        return f'no connection to the Hub at {constants.ENDPOINT}, or it broke: {_line(chain[-1])}'
    return _line(error)


def _who(token: Token) -> str:
    if isinstance(token, str):
        return 'the token given'
    return 'the stored token' if token is not False and get_token() else 'a request without a token'


def _line(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Stated:
    """What the Hub states about a file.

    Attributes:
        name: Path in the repository.
        size: Bytes.
        sha256: Of the content, for files in LFS or Xet.
        git: Name of the blob in git, for the others.
    """

    name: str
    size: Optional[int]
    sha256: Optional[str]
    git: Optional[str]

    def check(self, path: Path) -> Optional[str]:
        """How a file differs from this, or None."""
        if self.sha256:
            found, stated = sha256(path), self.sha256
        elif self.git:
            found, stated = _git_blob(path), self.git
        else:
            return 'the Hub states no hash for it'
        return None if found == stated else f'its hash is {found}, the Hub states {stated}'


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit, by path."""

    commit: str
    files: Dict[str, Stated]


def listing(repo_id: str, revision: Optional[str], token: Token) -> Listing:
    """Ask for the files of a repository.

    Raises:
        HubError: The repository or the revision is not to be had.
        ValueError: A file's name leads out of the folder that it would be written to.
    """
    api = HfApi(token=token)
    info = call(lambda: api.model_info(repo_id, revision=revision, files_metadata=True), repo_id, token)
    if not re.fullmatch(r'[0-9a-f]{40}', info.sha or ''):
        raise HubError(f'the answer about {repo_id} names no commit: is {constants.ENDPOINT} a Hub?')
    files = {}
    for f in info.siblings or ():
        check_name(f.rfilename, repo_id)
        files[f.rfilename] = Stated(f.rfilename, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
    return Listing(info.sha, files)


def check_name(name: str, repo_id: str) -> None:
    """Refuse a file name that leads out of its folder, on any system."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or '..' in path.parts or re.search(r'[\\:\x00-\x1f]', name):
        raise ValueError(f'{repo_id} is refused: its file name {name!r} leads out of the folder')


def download(repo_id: str, commit: str, file: Stated, token: Token, cache_dir: Optional[Path]) -> Path:
    """Get a file into huggingface_hub's cache and compare its hash with the one stated; a damaged one is not kept.

    Raises:
        HubError: It cannot be had, or arrived damaged twice.
    """
    for _ in range(2):
        path = Path(
            call(
                lambda: hf_hub_download(repo_id, file.name, revision=commit, token=token, cache_dir=cache_dir),
                repo_id,
                token,
            )
        )
        problem = file.check(path)
        if problem is None:
            return path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise HubError(f'{file.name} of {repo_id} is damaged: {problem}. It was taken out of the cache; nothing was loaded')


def cached(repo_id: str, name: str, revision: Optional[str], cache_dir: Optional[Path]) -> Optional[Path]:
    """A file in the cache, compared with the hash that the cache names it by, without asking the Hub."""
    path = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision)
    if not isinstance(path, str):
        return None
    stated = Path(path).resolve().name
    file = Stated(name, None, stated if len(stated) == 64 else None, stated if len(stated) == 40 else None)
    problem = file.check(Path(path))
    if problem:
        raise HubError(f'{name} of {repo_id} is damaged in the cache: {problem}')
    return Path(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return _digest(hashlib.sha256(), path)


def _git_blob(path: Path) -> str:
    return _digest(hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False), path)


def _digest(digest, path: Path) -> str:
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
