"""A Hugging Face Hub in memory, on loopback: repositories, regular and LFS files, tokens, and faults on demand."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = 'hf_' + 'StandInToken' * 3
LFS_ABOVE = 10_000  # bytes


@dataclass
class Repo:
    """A repository: its commits by name, and where its branches are."""

    private: bool = False
    commits: Dict[str, Dict[str, bytes]] = field(default_factory=lambda: {'0' * 40: {}})
    branches: Dict[str, str] = field(default_factory=lambda: {'main': '0' * 40})

    def files(self, revision: str = 'main') -> Optional[Dict[str, bytes]]:
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, files: Dict[str, bytes], branch: str = 'main') -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches.

    Attributes:
        pattern: Regular expression, searched.
        times: How many requests it meets.
        status: Status to answer with; None breaks the connection.
        headers: Of that answer.
        after: Break the connection only after doing what was requested.
        spoil: Changes the content that a GET answers with, instead.
    """

    pattern: str
    times: int = 1_000_000
    status: Optional[int] = None
    headers: Dict[str, str] = field(default_factory=dict)
    after: bool = False
    spoil: Optional[Callable[[bytes], bytes]] = None


class Hub:
    """The stand-in; `with Hub() as hub` serves it at `hub.url`."""

    def __init__(self):
        self.repos: Dict[str, Repo] = {}
        self.blobs: Dict[str, bytes] = {}
        self.faults: List[Fault] = []
        self.log: List[str] = []
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), type('_Handler', (_Handler,), {'hub': self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f'http://127.0.0.1:{self.port}'

    def __enter__(self) -> 'Hub':
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> Dict[str, str]:
        """Variables for a process that shall talk to this Hub with the account's token, its cache under a folder."""
        return dict(HF_ENDPOINT=self.url, HF_TOKEN=TOKEN, HF_HOME=str(home), HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1')

    def add(self, repo_id: str, files: Dict[str, bytes], private: bool = False) -> Repo:
        """Put a repository there, as if somebody had pushed it."""
        self.repos[repo_id] = repo = Repo(private)
        repo.commit(files)
        return repo

    def fail(self, pattern: str, **kwargs: Any) -> None:
        self.faults.append(Fault(pattern, **kwargs))

    def fault(self, request: str) -> Optional[Fault]:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None


def is_lfs(content: bytes) -> bool:
    return len(content) > LFS_ABOVE


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    hub: Hub
    _spoil: Optional[Callable[[bytes], bytes]] = None

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, status: int, body: Any = b'', **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self._spoil and self.command == 'GET':
            content = self._spoil(content)
        self.send_response(status)
        self.send_header('Content-Type', 'application/octet-stream' if isinstance(body, bytes) else 'application/json')
        self.send_header('Content-Length', str(len(content)))
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str = '', **headers: str) -> None:
        self._reply(status, {'error': message or code}, X_Error_Code=code, X_Error_Message=message or code, **headers)

    def _body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def _handle(self) -> None:
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        request = f'{self.command} {path}'
        self.hub.log.append(request)
        fault = self.hub.fault(request)
        self._spoil = fault.spoil if fault else None
        if fault and fault.status is None and not fault.after and not fault.spoil:
            self.rfile.read(min(1000, int(self.headers.get('Content-Length') or 0)))  # and then it was gone
            return self._break()
        body = self._body()
        if fault and fault.status:
            return self._reply(fault.status, {'error': 'a fault'}, **fault.headers)
        if fault and fault.after:
            self.wfile = open('/dev/null', 'wb')  # noqa: SIM115
            self._route(path, query, body)
            return self._break()
        self._route(path, query, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _route(self, path: str, query: Dict[str, List[str]], body: bytes) -> None:
        if match := re.fullmatch(r'/_lfs/([0-9a-f]{64})', path):  # signed URLs, which take no token
            return self._lfs(match[1], body)
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token != TOKEN:
            return self._refuse(401, '', f'Invalid credentials in Authorization header: {token}')
        if self.command == 'POST' and not token:
            return self._refuse(401, '', 'Invalid username or password.')
        if path == '/api/validate-yaml':
            return self._reply(200, {'errors': [], 'warnings': []})
        if path == '/api/repos/create':
            return self._create(json.loads(body))
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                repo = self.hub.repos.get(match[1])
                if repo is None or (repo.private and not token):
                    return self._refuse(404 if token else 401, 'RepoNotFound', 'Repository not found')
                return answer(self, repo, match, query, body)
        self._refuse(404, 'NoRoute')

    def _lfs(self, oid: str, body: bytes) -> None:
        assert not self.headers.get('Authorization'), 'a token went to the storage'
        if self.command == 'PUT':
            assert sha256(body) == oid
            self.hub.blobs[oid] = body
            return self._reply(200)
        self._reply(200, self.hub.blobs[oid], ETag=f'"{oid}"')

    def _create(self, request: Dict[str, Any]) -> None:
        repo_id = f'{request["organization"]}/{request["name"]}'
        new = repo_id not in self.hub.repos
        if new:
            self.hub.repos[repo_id] = Repo(request.get('visibility') == 'private')
        self._reply(200 if new else 409, {'url': f'{self.hub.url}/{repo_id}', 'name': repo_id, 'id': repo_id})

    def _preupload(self, repo: Repo, match: Any, query: Any, body: bytes) -> None:
        there = repo.files(match[2])
        if there is None:
            return self._refuse(404, 'RevisionNotFound')
        answers = []
        for file in json.loads(body)['files']:
            lfs = file['size'] > LFS_ABOVE
            old = there.get(file['path'])
            oid = None if old is None else sha256(old) if is_lfs(old) else git_blob(old)
            answers.append(
                {'path': file['path'], 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False, 'oid': oid}
            )
        self._reply(200, {'files': answers})

    def _batch(self, repo: Repo, match: Any, query: Any, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)['objects']:
            found = {'oid': wanted['oid'], 'size': wanted['size']}
            if wanted['oid'] not in self.hub.blobs:
                href = f'{self.hub.url}/_lfs/{wanted["oid"]}?X-Amz-Signature=secret'
                found['actions'] = {'upload': {'href': href}}
            objects.append(found)
        self._reply(200, {'transfer': 'basic', 'objects': objects})

    def _commit(self, repo: Repo, match: Any, query: Dict[str, List[str]], body: bytes) -> None:
        files = dict(repo.files(match[2]) or {})
        for line in filter(None, body.split(b'\n')):
            entry = json.loads(line)
            value = entry['value']
            if entry['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif entry['key'] == 'lfsFile':
                files[value['path']] = self.hub.blobs[value['oid']]
        branch = 'refs/pr/1' if 'create_pr' in query else match[2]
        name = repo.commit(files, branch)
        url = f'{self.hub.url}/{match[1]}'
        self._reply(
            200,
            {'commitUrl': f'{url}/commit/{name}', 'commitOid': name, 'pullRequestUrl': f'{url}/discussions/1'},
        )

    def _branch(self, repo: Repo, match: Any, query: Any, body: bytes) -> None:
        new = match[2] not in repo.branches
        repo.branches.setdefault(match[2], repo.branches['main'])
        self._reply(200 if new else 409, {})

    def _info(self, repo: Repo, match: Any, query: Any, body: bytes) -> None:
        revision = match[2] or 'main'
        files = repo.files(revision)
        if files is None:
            return self._refuse(404, 'RevisionNotFound')
        siblings = []
        for name, content in files.items():
            lfs = {'sha256': sha256(content), 'size': len(content), 'pointerSize': 130} if is_lfs(content) else None
            siblings.append({'rfilename': name, 'size': len(content), 'blobId': git_blob(content), 'lfs': lfs})
        sha = repo.branches.get(revision, revision)
        self._reply(200, {'id': match[1], 'sha': sha, 'private': repo.private, 'tags': [], 'siblings': siblings})

    def _resolve(self, repo: Repo, match: Any, query: Any, body: bytes) -> None:
        files = repo.files(match[2])
        if files is None:
            return self._refuse(404, 'RevisionNotFound')
        commit = repo.branches.get(match[2], match[2])
        content = files.get(match[3])
        if content is None:
            return self._refuse(404, 'EntryNotFound', X_Repo_Commit=commit)
        if not is_lfs(content):
            return self._reply(200, content, ETag=f'"{git_blob(content)}"', X_Repo_Commit=commit)
        oid = sha256(content)
        self.hub.blobs[oid] = content
        self._reply(  # to another origin, as the Hub's storage is
            302,
            Location=f'http://localhost:{self.hub.port}/_lfs/{oid}?X-Amz-Signature=secret',
            X_Linked_Etag=f'"{oid}"',
            X_Linked_Size=str(len(content)),
            X_Repo_Commit=commit,
        )


_REPO = r'([^/]+/[^/]+?)'
_ROUTES: Tuple[Tuple[str, Callable], ...] = (
    (rf'/api/models/{_REPO}/preupload/(.+)', _Handler._preupload),
    (rf'/{_REPO}\.git/info/lfs/objects/batch', _Handler._batch),
    (rf'/api/models/{_REPO}/commit/(.+)', _Handler._commit),
    (rf'/api/models/{_REPO}/branch/(.+)', _Handler._branch),
    (rf'/api/models/{_REPO}(?:/revision/(.+))?', _Handler._info),
    (rf'/{_REPO}/resolve/(refs/pr/\d+|[^/]+)/(.+)', _Handler._resolve),
)
