"""Point clouds and meshes as a model sees them."""

import numpy as np
import pytest
import timm
import torch
import trimesh

from timm_extra import cli
from timm_extra.inputs import inputs_of
from timm_extra.inputs.points import PointReader

CUBE = trimesh.creation.box((2, 2, 2))


def sphere(count, seed=0):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def write(path, points, **options):
    """A file of points, of the kind that its name says."""
    if path.suffix == '.npz':
        np.savez(path, **{options.get('key', 'points'): points})
    elif path.suffix == '.off':
        lines = [f'OFF\n{len(points)} 0 0', *(' '.join(map(repr, map(float, p))) for p in points)]
        path.write_text('\n'.join(lines) + '\n')
    else:
        trimesh.PointCloud(points).export(path, encoding=options.get('encoding', 'binary'))
    return path


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('a.ply', dict(encoding='binary')),
        ('a.ply', dict(encoding='ascii')),
        ('a.off', {}),
        ('a.npz', dict(key='xyz')),
        ('a.npz', dict(key='arr_0')),
    ],
    ids=str,
)
def test_the_points_of_a_file_are_centred_in_the_unit_sphere_each_once(name, options, tmp_path):
    points = 5 + 3 * sphere(20)
    points[0] = 5  # inside
    x = PointReader((20, 3)).read(write(tmp_path / name, points, **options))
    assert (x.shape, x.dtype) == ((20, 3), torch.float32)
    centred = points - points.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1).max()
    assert sorted(x[:, 0].tolist()) == pytest.approx(sorted(expected[:, 0]), abs=1e-5)
    assert float(x.norm(dim=1).max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('ending', ['off', 'ply'])
def test_of_a_mesh_the_surface_is_sampled_not_its_corners(ending, tmp_path):
    CUBE.export(tmp_path / f'cube.{ending}')
    x = PointReader((2000, 3)).read(tmp_path / f'cube.{ending}')
    largest = x.abs().max(dim=1).values
    assert float(largest.min()) > 0.5  # on a face of a cube whose corners are at 1 / √3
    assert float(largest.max()) < 0.65
    faces = x.abs().argmax(dim=1) * 2 + (x.gather(1, x.abs().argmax(dim=1, keepdim=True))[:, 0] > 0)
    assert min(faces.bincount(minlength=6).tolist()) > 200  # by area
    assert len({tuple(p) for p in x.tolist()}) == 2000


def test_points_are_drawn_by_the_random_state_in_training_and_are_the_same_in_measuring(tmp_path):
    path = write(tmp_path / 'a.ply', sphere(500))
    assert torch.equal(*(PointReader((50, 3)).read(path) for _ in range(2)))
    torch.manual_seed(0)
    draws = [PointReader((50, 3), random=True).read(path) for _ in range(2)]
    assert not torch.equal(*draws)
    torch.manual_seed(0)
    assert torch.equal(PointReader((50, 3), random=True).read(path), draws[0])


def test_too_few_points_are_repeated(tmp_path):
    x = PointReader((64, 3)).read(write(tmp_path / 'a.npz', sphere(5)))
    assert x.shape == (64, 3) and len({tuple(p) for p in x.tolist()}) <= 5


DAMAGED = {
    'text.ply': b'no points',
    'empty.ply': b'',
    'cut.ply': b'ply\nformat',
    'text.off': b'no points',
    'cut.off': b'OFF\n8 12 6\n0 0 0\n',
    'none.off': b'OFF\n0 0 0\n',
    'text.npz': b'no points',
}


@pytest.mark.parametrize('name', [*DAMAGED, 'nan.npz', 'flat.npz', 'names.npz', 'objects.npz'])
def test_damaged_files_are_named_in_one_line(name, tmp_path):
    path = tmp_path / name
    if name in DAMAGED:
        path.write_bytes(DAMAGED[name])
    else:
        arrays = dict(
            nan=dict(points=np.full((9, 3), np.nan)),
            flat=dict(points=np.zeros(9)),
            names=dict(a=sphere(9), b=sphere(9)),
            objects=dict(points=np.array([{}], dtype=object)),
        )
        np.savez(path, **arrays[path.stem])
    with pytest.raises(ValueError, match=rf'^\S*{name} cannot be read: [^\n]+$'):
        PointReader((16, 3)).read(path)


def test_finetune_and_predict_take_point_clouds(tmp_path, capsys):
    for i in range(12):
        for name, points in (('ball', sphere(300, i)), ('cube', CUBE.sample(300, seed=i))):
            (tmp_path / 'shapes' / name).mkdir(parents=True, exist_ok=True)
            write(tmp_path / 'shapes' / name / f'{i}.{("ply", "off", "npz")[i % 3]}', points)
    model = ['--model', 'test_perceiver', '--model-kwargs', 'stem=points', 'img_size=128', 'max_resolution=16']
    options = ['--epochs', '8', '-b', '8', '-j', '0', '--lr', '3e-3', '--device', 'cpu']
    words = ['finetune', str(tmp_path / 'shapes'), *model, *options, '--output']
    assert cli.main([*words, str(tmp_path / 'out')]) == 0
    printed, shown = capsys.readouterr()
    assert float(printed.split('accuracy ')[1].split()[0]) > 70
    assert 'point clouds  20 of' in shown
    folder = ['predict', str(tmp_path / 'shapes' / 'cube'), '--model', f'local-dir:{tmp_path}/out/model', '--topk', '1']
    assert cli.main(folder) == 0
    assert sum('cube' in line for line in capsys.readouterr().out.splitlines()[1::2]) > 8
    assert cli.main([*words, str(tmp_path / 'x'), '--mixup', '1']) == 1
    assert '--mixup is not for point clouds' in capsys.readouterr().err


def test_models_of_other_channels_and_means_are_refused():
    model = timm.create_model('test_perceiver', stem='points', img_size=16, max_resolution=16, in_chans=6)
    with pytest.raises(ValueError, match='points of 3 coordinates, the model takes 6 channels'):
        inputs_of(model)
    model = timm.create_model('test_perceiver', stem='points', img_size=16, max_resolution=16)
    with pytest.raises(ValueError, match='leave out `mean` and `std`'):
        inputs_of(model, mean=(0.5,))
