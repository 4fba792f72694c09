"""Push, pull and load through a Hub on loopback, and what happens when it, the way to it or its content is bad."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tests.hub.standin import TOKEN, Hub, is_lfs
from tests.reference.perceiver import transformers_classifier
from timm_extra import hub
from timm_extra.models._build import read_checkpoint

FAMILIES = ('test_ceit', 'test_perceiver', 'test_perceiver_io', 'test_glom')
CEIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5)
PERCEIVER = dict(num_latents=24, latent_dim=64, num_heads=4, num_blocks=2, block_depth=2, num_classes=20)
SMALL_CONFIG = dict(
    num_latents=24, d_latents=64, num_self_attention_heads=4, num_blocks=2, num_self_attends_per_block=2, num_labels=20
)
REPO = 'me/model'


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A Hub that huggingface_hub talks to, with the token of an account on it and an empty cache."""
    with Hub() as there:
        monkeypatch.setattr(constants, 'ENDPOINT', there.url)
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', there.url + '/{repo_id}/resolve/{revision}/{filename}'
        )
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield there
        huggingface_hub.close_session()


@pytest.fixture
def pauses(monkeypatch):
    """Seconds between requests, recorded and not waited for."""
    pauses = []
    monkeypatch.setattr(time, 'sleep', pauses.append)
    return pauses


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return timm.create_model('test_ceit', **CEIT).eval()


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
    return hub.save(model, tmp_path_factory.mktemp('saved') / 'model')


@pytest.fixture
def copied(saved, tmp_path):
    """A saved model to spoil."""
    folder = tmp_path / 'copied'
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def contents(folder):
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


def cached_files(tmp_path):
    """Content of the files in the cache, leaving out those that only say where it is."""
    return [p.read_bytes() for p in (tmp_path / 'cache').rglob('blobs/*') if p.is_file()]


def same(a, b, size=(3, 32, 32)):
    torch.manual_seed(1)
    x = torch.randn(2, *size)
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize('name', FAMILIES)
def test_pushed_and_pulled_logits_are_equal(name, there, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    size = model.pretrained_cfg['input_size']
    url = hub.push(model, REPO)
    assert url.startswith(f'{there.url}/{REPO}/commit/')
    assert sorted(there.repos[REPO].files()) == ['README.md', 'config.json', 'model.safetensors']
    folder = hub.pull(REPO, tmp_path / 'pulled')
    assert contents(folder) == there.repos[REPO].files()
    for again in (
        hub.load(REPO),
        hub.load(folder),
        timm.create_model(f'hf-hub:{REPO}', pretrained=True),
        timm.create_model(f'local-dir:{folder}', pretrained=True),
    ):
        assert same(again, model, size)


def test_a_backbone_comes_back_as_one(there):
    backbone = timm.create_model('test_ceit', **dict(CEIT, num_classes=0))
    hub.push(backbone, REPO)
    assert same(hub.load(REPO), backbone)
    assert same(timm.create_model(f'hf-hub:{REPO}', pretrained=True), backbone)
    tuned = hub.load(REPO, model_args=dict(num_classes=3))
    assert tuned(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert torch.equal(tuned.cls_token, backbone.cls_token)


def test_a_model_of_timm_is_pushed_without_the_plugin(there):
    model = timm.create_model('test_vit', num_classes=4)
    hub.push(model, REPO)
    assert b'timm_extra' not in there.repos[REPO].files()['README.md']
    assert same(hub.load(REPO), model, (3, 160, 160))


def test_the_card_says_what_there_is_to_say(model, there):
    hub.push(
        model,
        REPO,
        training_data='A thousand photos of *kittens*.',
        metrics={'ImageNet-1k': {'top1': 81.9, 'top5': 95.25}, 'Kittens': {'f1': 0.5}},
    )
    text = there.repos[REPO].files()['README.md'].decode()
    card = ModelCard(text)
    assert card.data.library_name == 'timm'
    assert card.data.license == 'apache-2.0'
    assert set(card.data.tags) == {'image-classification', 'timm', 'timm-extra', 'arxiv:2103.11816'}
    found = [(r.dataset_name, r.metric_type, r.metric_name, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ('ImageNet-1k', 'accuracy', 'Top-1 accuracy', 81.9),
        ('ImageNet-1k', 'accuracy', 'Top-5 accuracy', 95.25),
        ('Kittens', 'f1', 'f1', 0.5),
    ]
    params = sum(p.numel() for p in model.parameters()) / 1e6
    for part in (
        'import timm_extra',
        f"'hf-hub:{REPO}'",
        '`test_ceit`',
        f'{params:.2f} M',
        '| GMACs |',
        '*kittens*',
        '| ImageNet-1k | Top-1 accuracy | 81.9 |',
        'Incorporating Convolution Designs into Visual Transformers',
    ):
        assert part in text, part
    assert 'OWNER/NAME' not in text


def test_a_second_push_changes_what_has_changed(model, there):
    hub.push(model, REPO, commit_message='First')
    repo = there.repos[REPO]
    first, commits = repo.files(), len(repo.commits)
    hub.push(model, REPO)
    assert len(repo.commits) == commits
    other = timm.create_model('test_ceit', **CEIT)
    card = b'# Somebody wrote this'
    repo.commit(dict(repo.files(), **{'README.md': card, 'notes.txt': b'kept'}))
    hub.push(other, REPO)
    assert repo.files()['README.md'] == card and repo.files()['notes.txt'] == b'kept'
    assert repo.files()['model.safetensors'] != first['model.safetensors']
    assert same(hub.load(REPO), other)
    hub.push(other, REPO, training_data='Photos')
    assert b'Photos' in repo.files()['README.md']


def test_a_card_on_the_hub_that_was_not_edited_is_renewed(model, there):
    hub.push(model, REPO)
    repo = there.repos[REPO]
    first = repo.files()['README.md']
    assert b'5 classes' in first
    hub.push(timm.create_model('test_ceit', **dict(CEIT, num_classes=7)), REPO)
    assert b'7 classes' in repo.files()['README.md']
    edited = first.replace(b'A timm model', b'My timm model')
    repo.commit(dict(repo.files(), **{'README.md': edited}))
    hub.push(model, REPO)
    assert repo.files()['README.md'] == edited


def test_pulling_keeps_what_is_not_of_the_repository(model, there, tmp_path):
    hub.push(model, REPO)
    files, dest = there.repos[REPO].files(), tmp_path / 'pulled'
    hub.pull(REPO, dest)
    (dest / 'README.md').write_text('# Mine')
    with pytest.warns(UserWarning, match=r'pulled/README\.md was written or edited by hand and is kept'):
        hub.pull(REPO, dest)
    assert contents(dest) == {**files, 'README.md': b'# Mine'}
    assert contents(hub.pull(REPO, dest, force=True)) == files
    shutil.rmtree(dest)
    hub.save(timm.create_model('test_glom', num_classes=5), dest)
    before = contents(dest)
    with pytest.raises(FileExistsError, match=r'pulled holds a test_glom of 5 classes, not a test_ceit of 5 classes'):
        hub.pull(REPO, dest)
    assert contents(dest) == before
    assert contents(hub.pull(REPO, dest, force=True)) == files


def test_folders_are_pushed(model, copied, there, tmp_path):
    (copied / 'optimizer.pt').write_bytes(b'stays here')
    hub.push(copied, REPO, metrics={'Kittens': {'top1': 50.0}})
    assert sorted(there.repos[REPO].files()) == ['README.md', 'config.json', 'model.safetensors']
    assert b'Kittens' in there.repos[REPO].files()['README.md']
    (copied / 'README.md').write_text("# Mine\n\n`hub.load('OWNER/NAME')`\n")
    hub.push(str(copied), REPO)
    assert there.repos[REPO].files()['README.md'].decode() == f"# Mine\n\n`hub.load('{REPO}')`\n"
    with pytest.raises(ValueError, match='your own'):
        hub.push(copied, REPO, training_data='Photos')
    hub.save(model, tmp_path / 'run' / 'model')  # as a pretraining leaves it
    hub.push(tmp_path / 'run', 'me/backbone')
    assert same(hub.load('me/backbone'), model)
    with pytest.raises(ValueError, match='model_args'):
        hub.push(copied, REPO, model_args={'depth': 3})
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        hub.push(tmp_path, REPO)


def test_branches_pull_requests_and_commits(model, there, tmp_path):
    hub.push(model, REPO)
    repo = there.repos[REPO]
    main = repo.branches['main']
    other = timm.create_model('test_ceit', **CEIT)
    hub.push(other, REPO, revision='next')
    assert hub.push(other, REPO, create_pr=True).endswith('/discussions/1')
    assert repo.branches['main'] == main
    for revision, expected in (('next', other), ('refs/pr/1', other), ('main', model), (main, model)):
        assert same(hub.load(REPO, revision=revision), expected)
    assert same(timm.create_model(f'hf-hub:{REPO}@next', pretrained=True), other)
    with pytest.raises(hub.HubError, match='no such revision'):
        hub.pull(REPO, tmp_path / 'pulled', revision='never')
    with pytest.raises(ValueError, match='pull request'):
        hub.push(model, REPO, revision='next', create_pr=True)
    with pytest.raises(hub.HubError, match='no repository me/absent'):
        hub.push(model, 'me/absent', create_pr=True)
    assert 'me/absent' not in there.repos


def test_private_repositories(model, there, monkeypatch):
    hub.push(model, REPO, private=True)
    assert there.repos[REPO].private
    assert same(hub.load(REPO), model)
    with pytest.raises(hub.HubError, match='private and a request without a token'):
        hub.load(REPO, token=False)
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(hub.HubError, match='private and a request without a token'):
        hub.load(REPO)
    assert same(hub.load(REPO, token=TOKEN), model)
    there.add('me/public', {'README.md': b'for all'})
    with pytest.raises(hub.HubError, match='exists and is public'):
        hub.push(model, 'me/public', private=True, token=TOKEN)
    assert there.repos['me/public'].files() == {'README.md': b'for all'}


def test_a_wrong_token_is_not_accepted_and_not_repeated(model, there, pauses, caplog):
    hub.push(model, REPO)
    before, wrong = there.repos[REPO].files(), 'hf_' + 'Wrong' * 7
    for use in (lambda: hub.push(model, REPO, token=wrong), lambda: hub.load(REPO, token=wrong)):
        with pytest.raises(hub.HubError, match=r'does not accept the token given \(401\): log in') as caught:
            use()
        error = caught.value
        while error is not None:  # what a traceback shows
            assert wrong not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert wrong not in caplog.text
    assert there.repos[REPO].files() == before
    assert pauses == []


def test_a_token_without_the_right_to_write(model, there, pauses):
    before = there.add(REPO, {'README.md': b'theirs'}).files()
    there.fail(r'POST .*/preupload/', status=403)
    with pytest.raises(hub.HubError, match=r'nothing was pushed.*\(403\): it needs a token with write access'):
        hub.push(model, REPO)
    assert there.repos[REPO].files() == before and pauses == []


def test_no_repository(there, tmp_path, pauses):
    with pytest.raises(hub.HubError, match='there is no repository me/absent'):
        hub.pull('me/absent', tmp_path / 'pulled')
    assert not (tmp_path / 'pulled').exists() and pauses == []
    for name in ('absent', './absent', str(tmp_path / 'absent')):
        with pytest.raises(FileNotFoundError, match='there is no folder'):
            hub.load(name)
    with pytest.raises(ValueError, match='has to be owner/name'):
        hub.push(timm.create_model('test_ceit', **CEIT), 'model')
    there.add('me/empty', {'README.md': b'nothing else'})
    with pytest.raises(hub.HubError, match=r'me/empty holds no config\.json'):
        hub.load('me/empty')


def test_as_a_user_runs_it(there, tmp_path):
    """In a process of its own, by environment variables; without the plugin timm knows no such model."""
    script = f"""
import timm, torch
try:
    import timm_extra
    from timm_extra import hub
    model = timm.create_model('test_ceit', num_classes=3).eval()
    print(hub.push(model, {REPO!r}))
    x = torch.randn(1, 3, 160, 160)
    for again in (hub.load({REPO!r}), timm.create_model('hf-hub:{REPO}', pretrained=True)):
        assert torch.equal(again.eval()(x), model(x))
    timm.models._registry._model_entrypoints.pop('test_ceit')  # as if the plugin were not imported
    timm.create_model('hf-hub:{REPO}', pretrained=True)
except RuntimeError as e:
    print(e)
"""
    env = dict(os.environ, **there.environment(tmp_path), HF_DEBUG='1', HF_HUB_VERBOSITY='debug')
    done = subprocess.run([sys.executable, '-c', script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f'{there.url}/{REPO}/commit/')
    assert done.stdout.splitlines()[-1] == 'Unknown model (test_ceit)'
    assert 'model.safetensors' in done.stderr  # the progress
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize('headers', [{'Retry-After': '42'}, {'RateLimit': '"api";r=0;t=42'}])
def test_the_pause_that_the_hub_asks_for(headers, model, there, pauses):
    there.fail('/api/repos/create', times=1, status=429, headers=headers)
    hub.push(model, REPO)
    assert pauses == [42]


@pytest.mark.parametrize('status', [429, 503])
def test_what_may_pass_is_waited_for(status, model, there, pauses):
    headers = {'Retry-After': '7'} if status == 429 else {}
    for pattern in ('/api/repos/create', 'POST .*/commit/', 'GET /api/models/', '/preupload/', 'GET /_lfs/'):
        there.fail(pattern, times=2, status=status, headers=headers)
    hub.push(model, REPO)
    assert same(hub.load(REPO), model)
    assert pauses.count(7) >= 6 if status == 429 else pauses.count(1) >= 3 and pauses.count(2) >= 3
    assert len(there.repos[REPO].commits) == 2


def test_what_does_not_pass_is_given_up(model, there, pauses):
    before = there.add(REPO, {'README.md': b'theirs'}).files()
    there.fail('POST .*/commit/', status=429)
    with pytest.raises(hub.HubError, match=r'nothing was pushed to me/model: too many requests \(429\)'):
        hub.push(model, REPO)
    assert there.repos[REPO].files() == before
    there.fail('GET /api/models/', status=500)
    with pytest.raises(hub.HubError, match=r'the Hub fails \(500\)'):
        hub.load(REPO)
    assert 2 <= len([r for r in there.log if r.startswith('GET /api/models/')]) <= 5


def test_a_hub_that_goes_away_during_an_upload(there, pauses, caplog):
    model = timm.create_model('test_ceit', num_classes=3)
    before = there.add(REPO, {'README.md': b'theirs'}).files()
    there.fail('PUT /_lfs/')
    with pytest.raises(hub.HubError, match='nothing was pushed to me/model: no connection to the Hub') as caught:
        hub.push(model, REPO)
    assert any(r.startswith('PUT /_lfs/') for r in there.log)
    assert there.repos[REPO].files() == before and len(there.repos[REPO].commits) == 2
    assert 'secret' not in str(caught.value) and TOKEN not in caplog.text
    there.faults.clear()
    hub.push(model, REPO)
    assert same(hub.load(REPO), model, (3, 160, 160))


def test_a_hub_that_is_not_there(model, there, tmp_path, pauses):
    there.__exit__()
    with pytest.raises(hub.HubError, match='no connection to the Hub at http://127'):
        hub.push(model, REPO)
    with pytest.raises(hub.HubError, match='no connection to the Hub'):
        hub.pull(REPO, tmp_path / 'pulled')
    assert not (tmp_path / 'pulled').exists()


def test_a_lost_answer_makes_no_second_commit(model, there, pauses):
    there.fail('POST .*/commit/', times=1, after=True)
    hub.push(model, REPO)
    assert len(there.repos[REPO].commits) == 2
    there.fail('POST .*/commit/', times=1, after=True)
    with pytest.raises(hub.HubError, match='no connection'):  # a second pull request would be one too many
        hub.push(timm.create_model('test_ceit', **CEIT), REPO, create_pr=True)


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize('name, pattern', [('model.safetensors', 'GET /_lfs/'), ('config.json', r'GET .*config\.json')])
def test_a_damaged_download_is_refused(name, pattern, there, tmp_path):
    model = timm.create_model('test_ceit', num_classes=3)
    hub.push(model, REPO)
    assert is_lfs(there.repos[REPO].files()['model.safetensors'])
    there.fail(pattern, spoil=flipped)
    dest = tmp_path / 'pulled'
    dest.mkdir()
    (dest / 'config.json').write_text('what was here')
    for use in (lambda: hub.pull(REPO, dest), lambda: hub.load(REPO)):
        with pytest.raises(hub.HubError, match=rf'{name} of {REPO} is damaged: its hash is .*taken out of the cache'):
            use()
    assert contents(dest) == {'config.json': b'what was here'}
    assert flipped(there.repos[REPO].files()[name]) not in cached_files(tmp_path)
    there.faults.clear()
    there.fail(pattern, times=1, spoil=flipped)  # once: the second download is whole
    assert contents(hub.pull(REPO, dest, force=True)) == there.repos[REPO].files()
    assert same(hub.load(REPO), model, (3, 160, 160))


def test_a_short_download_is_refused(there, pauses):
    hub.push(timm.create_model('test_ceit', num_classes=3), REPO)
    there.fail('GET /_lfs/', spoil=lambda content: content[:5000])
    with pytest.raises(hub.HubError):
        hub.load(REPO)


def test_without_the_hub_the_cache_is_checked_and_loaded(model, there, tmp_path, monkeypatch):
    hub.push(model, REPO)
    hub.load(REPO)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    requests = len(there.log)
    assert same(hub.load(REPO), model)
    assert len(there.log) == requests
    with pytest.raises(hub.HubError, match='not in the cache, and HF_HUB_OFFLINE is set'):
        hub.load('me/other')
    with pytest.raises(hub.HubError, match=r'nothing was pushed.*HF_HUB_OFFLINE is set'):
        hub.push(model, REPO)
    weights = next(p for p in (tmp_path / 'cache').rglob('model.safetensors')).resolve()
    weights.write_bytes(flipped(weights.read_bytes()))
    with pytest.raises(hub.HubError, match='damaged in the cache'):
        hub.load(REPO)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    assert same(hub.load(REPO), model)


def test_tokens_are_not_published(model, there, copied):
    other = 'hf_' + 'a1B2' * 9
    for kwargs in (
        dict(training_data=f'Images of {TOKEN}'),
        dict(training_data=f'Images of {other}'),
        dict(commit_message=TOKEN),
        dict(model_config={'hub': TOKEN}),
    ):
        with pytest.raises(ValueError, match='holds an access token') as caught:
            hub.push(model, REPO, **kwargs)
        assert TOKEN not in str(caught.value) and other not in str(caught.value)
    assert there.repos == {} and there.log == []


@pytest.mark.parametrize('form', ['model.safetensors', 'pytorch_model.bin'])
def test_published_perceivers_load_by_name(form, there, tmp_path):
    """What transformers' `save_pretrained` writes, and the form that DeepMind's repositories have."""
    other = transformers_classifier('perceiver_io_base', **SMALL_CONFIG)
    other.save_pretrained(tmp_path / 'written')
    files = contents(tmp_path / 'written')
    if form == 'pytorch_model.bin':
        torch.save(other.state_dict(), tmp_path / form)
        del files['model.safetensors']
        files[form] = (tmp_path / form).read_bytes()
    repo_id = 'deepmind/vision-perceiver-fourier'  # what the registered configuration names
    there.add(repo_id, files)
    ours = timm.create_model(
        'perceiver_io_base', pretrained=True, compat='hf', pretrained_cfg_overlay=dict(num_classes=20), **PERCEIVER
    ).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x).logits, rtol=0, atol=1e-4)
    assert f'HEAD /{repo_id}/resolve/main/{form}' in there.log
    hub.push(ours, REPO)  # converted, it is a model like others
    assert same(hub.load(REPO), ours, (3, 224, 224))
    if form == 'pytorch_model.bin':
        with pytest.raises(hub.HubError, match=r'pickles \(pytorch_model\.bin\) are not read'):
            hub.load(repo_id)
    else:
        with pytest.raises(ValueError, match='names no architecture'):
            hub.load(repo_id)


class Malice:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_pickle_is_executed(there, copied, tmp_path):
    mark = tmp_path / 'executed'
    torch.save({'latents': Malice(mark)}, tmp_path / 'pytorch_model.bin')
    bad = (tmp_path / 'pytorch_model.bin').read_bytes()
    for content in (bad, pickle.dumps(Malice(mark))):
        (tmp_path / 'model.pth').write_bytes(content)
        with pytest.raises(ValueError, match='cannot load'):
            read_checkpoint(str(tmp_path / 'model.pth'))
        there.add('deepmind/vision-perceiver-fourier', {'pytorch_model.bin': content})
        with pytest.raises(ValueError, match=r'perceiver_io_base: .*never executed'):
            timm.create_model('perceiver_io_base', pretrained=True, **PERCEIVER)
        (copied / 'model.safetensors').write_bytes(content)  # by another name
        with pytest.raises(ValueError, match='refused'):
            hub.load(copied)
        (copied / 'model.safetensors').unlink()
        (copied / 'pytorch_model.bin').write_bytes(content)
        with pytest.raises(FileNotFoundError, match=r'pickles \(pytorch_model\.bin\) are not read'):
            hub.load(copied)
        (copied / 'model.safetensors').write_bytes(b'')
    assert not mark.exists()


def test_archives_do_not_unpack_to_more_than_they_are(tmp_path):
    torch.save({'a': torch.zeros(1_000_000)}, tmp_path / 'plain.pth')
    with (
        zipfile.ZipFile(tmp_path / 'plain.pth') as plain,
        zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record))
    assert len(torch.load(tmp_path / 'bomb.pth', weights_only=True)['a']) == 1_000_000  # PyTorch unpacks it
    with pytest.raises(ValueError, match=r'would unpack to 4,\d+,\d+ bytes'):
        read_checkpoint(str(tmp_path / 'bomb.pth'))
    assert len(read_checkpoint(str(tmp_path / 'plain.pth'))['a']) == 1_000_000


def with_header(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


TERABYTES = {'dtype': 'F32', 'shape': [1 << 20, 1 << 20], 'data_offsets': [0, 1 << 42]}
BAD_WEIGHTS = {
    'empty': b'',
    'long header': struct.pack('<Q', 1 << 42) + b'{}',
    'no json': with_header(b'{"a": '),
    'a list': with_header(b'[]'),
    'nested': with_header(b'[' * 100_000),
    'terabytes': with_header({'head.weight': TERABYTES}, b'1234'),
    'shape of terabytes': with_header({'head.weight': dict(TERABYTES, data_offsets=[0, 4])}, b'1234'),
    'negative': with_header({'head.weight': dict(TERABYTES, shape=[-1, -1], data_offsets=[0, 4])}, b'1234'),
    'unknown dtype': with_header({'head.weight': dict(TERABYTES, dtype='OBJECT')}, b'1234'),
    'offsets': with_header({'head.weight': dict(TERABYTES, shape=[1], data_offsets=['0', 4])}, b'1234'),
}


@pytest.mark.parametrize('case', list(BAD_WEIGHTS))
def test_weights_that_claim_what_they_do_not_hold(case, copied, there, tmp_path):
    (copied / 'model.safetensors').write_bytes(BAD_WEIGHTS[case])
    there.add(REPO, contents(copied))
    for use in (
        lambda: hub.load(copied),
        lambda: hub.load(REPO),
        lambda: hub.pull(REPO, tmp_path / 'pulled'),
        lambda: hub.push(copied, 'me/other'),
    ):
        with pytest.raises(ValueError, match=r'model\.safetensors is (refused|no safetensors file)'):
            use()
    with pytest.raises(ValueError, match='cannot load'):
        read_checkpoint(str(copied / 'model.safetensors'))
    assert not (tmp_path / 'pulled').exists() and 'me/other' not in there.repos


BAD_CONFIGS = {
    'a path for a model': (dict(architecture='../../model'), 'is a path'),
    'weights elsewhere': (dict(pretrained_cfg=dict(file='../../weights.pth')), 'leads to other files'),
    'another name': (dict(pretrained_cfg=dict(hf_hub_filename='../weights.bin')), 'leads to other files'),
    'a loader': (dict(pretrained_cfg=dict(custom_load='hf')), 'leads to other files'),
    'an attribute': (dict(pretrained_cfg=dict(__class__='str')), "has no '__class__'"),
    'a checkpoint': (dict(model_args=dict(checkpoint_path='../../weights.pth')), "'checkpoint_path' is no argument"),
    'a cache': (dict(model_args=dict(cache_dir='/somewhere')), "'cache_dir' is no argument"),
    'a device': (dict(model_args=dict(device='cuda')), "'device' is no argument"),
    'an overlay': (dict(model_args=dict(pretrained_cfg_overlay={'file': 'x'})), 'is no argument'),
    'dunder': (dict(model_args=dict(__init__=1)), "'__init__' is no argument"),
    'a path in a value': (dict(model_args=dict(global_pool='../avg')), 'is a path'),
    'not a name': (dict(model_args={'a b': 1}), "'a b' is no argument"),
    'unknown argument': (dict(model_args=dict(surprise=1)), 'describes no model: TypeError'),
    'wrong type': (dict(model_args=dict(depth='many')), 'describes no model'),
    'not objects': (dict(model_args=[1]), 'have to be objects'),
    'endless depth': (dict(model_args=dict(depth=1 << 40)), 'exceeds 1,048,576'),
    'great depth': (dict(model_args=dict(depth=20_000)), 'far more layers'),
    'infinity': (dict(model_args=dict(mlp_ratio=float('inf'))), 'exceeds 1,048,576'),
    'nan': (dict(model_args=dict(mlp_ratio=float('nan'))), 'is not a number'),
    'terabytes': (dict(model_args=dict(embed_dim=1 << 19, num_heads=1, depth=1)), r'describes .* values'),
    'classes': (dict(num_classes=1 << 30), 'exceeds 1,048,576'),
    'many classes': (dict(model_args=dict(num_classes=1 << 20, embed_dim=240, depth=1)), r'describes .* values'),
    'an offset': (dict(pretrained_cfg=dict(label_offset='x')), 'cannot be loaded: TypeError'),
    'no architecture': (dict(architecture=None), 'names no architecture'),
    'another plugin': (dict(architecture='magic', timm_plugin='magic_models'), '`import magic_models` first'),
    'a newer plugin': (dict(architecture='magic', timm_plugin='timm_extra'), 'newer timm_extra: pip install'),
    'a rude plugin': (dict(architecture='magic', timm_plugin='x; rm -rf'), "unknown model 'magic'; it may need"),
}


@pytest.mark.parametrize('case', list(BAD_CONFIGS))
def test_configurations_that_are_refused(case, copied, there):
    changes, message = BAD_CONFIGS[case]
    file = copied / 'config.json'
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config[key] = dict(config[key], **value) if key in config and isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        hub.load(copied)
    if 'cannot be loaded' not in message:
        with pytest.raises(ValueError, match=message):
            hub.push(copied, REPO)
        assert there.repos == {}


def test_configurations_that_are_none(copied):
    for text, message in (('{', 'not JSON'), ('[' * 100_000, 'not JSON'), ('[1]', 'names no architecture')):
        (copied / 'config.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            hub.load(copied)
    with open(copied / 'config.json', 'wb') as file:
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(ValueError, match='bytes are not a configuration'):
        hub.load(copied)


@pytest.mark.parametrize('name', ['../evil.py', 'a/../../evil', '/etc/evil', '..\\evil', 'C:evil', 'a\nb'])
def test_file_names_that_lead_elsewhere(name, saved, there, tmp_path):
    there.add(REPO, dict(contents(saved), **{name: b'evil'}))
    for use in (lambda: hub.pull(REPO, tmp_path / 'pulled'), lambda: hub.load(REPO)):
        with pytest.raises(ValueError, match='leads out of the folder'):
            use()
    assert not (tmp_path / 'pulled').exists() and cached_files(tmp_path) == []


def test_weights_of_another_model_are_refused(copied):
    tensors = load_file(copied / 'model.safetensors')
    tensors['head.weight'] = tensors['head.weight'][:2].clone()
    save_file(tensors, copied / 'model.safetensors')
    with pytest.raises(ValueError, match=r'size mismatch for head\.weight'):
        hub.load(copied)
