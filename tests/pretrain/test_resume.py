"""A training that Ctrl-C ends, and one that goes on after its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import timm_extra
from timm_extra.pretrain.recipes import Schedule, build_optimizer, load_optimizer, settings
from timm_extra.pretrain.tasks import BYOL
from timm_extra.pretrain.views import BYOL_VIEWS, RandomView
from timm_extra.training import checkpoints
from timm_extra.training.log import read_log

sys.path.insert(0, str(Path(__file__).parent))
from train import equal, losses, run

SIZE = dict(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,))


class Signalling(RandomView):
    """BYOL's first view, which sends Ctrl-C when it is made for the last of some steps."""

    def __init__(self, steps, times):
        super().__init__(BYOL_VIEWS[0], **SIZE)
        self.left, self.times = steps, times

    def forward(self, images, keys):
        self.left -= 1
        for _ in range(self.times if self.left == 0 else 0):
            signal.raise_signal(signal.SIGINT)
        return super().forward(images, keys)


def interrupted(output, steps, times=1, **options):
    views = dict(view1=Signalling(steps, times), view2=RandomView(BYOL_VIEWS[1], **SIZE))
    return run(output, checkpoint_interval=100, **SIZE, **views, **options)


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r'^stopped after step 5 of 24; `resume=True` goes on from there$'):
        interrupted(tmp_path, 5)
    assert checkpoints.steps(tmp_path / 'checkpoints') == [5] and not (tmp_path / 'model').exists()
    assert [int(step) for step, *_ in losses(tmp_path)] == [0, 1, 2, 3, 4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r'^$'):
        interrupted(tmp_path, 5, times=2)
    assert checkpoints.steps(tmp_path / 'checkpoints') == []


def test_ctrl_c_in_the_last_step_ends_nothing(tmp_path):
    assert interrupted(tmp_path, 3, num_train_steps=3).steps == 3
    assert (tmp_path / 'model' / 'model.safetensors').exists()


def test_processes_stop_after_the_same_step(tmp_path):
    """Ctrl-C reaches one of them."""
    code = (
        'import torch.distributed as dist, test_resume\n'
        'try: test_resume.interrupted({!r}, 3 if {} else 100)\n'
        'except KeyboardInterrupt as e: print(e)\n'
        'dist.destroy_process_group()'
    )
    with socket.create_server(('localhost', 0)) as server:
        port = str(server.getsockname()[1])
    env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=port, OMP_NUM_THREADS='1')
    env.update(CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(Path(timm_extra.__file__).parents[1]))
    children = [
        subprocess.Popen(
            [sys.executable, '-c', code.format(str(tmp_path), rank)],
            env=dict(env, RANK=str(rank), LOCAL_RANK=str(rank)),
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [child.communicate(timeout=120) for child in children]
    assert [out for out, _ in said] == ['stopped after step 3 of 24; `resume=True` goes on from there\n'] * 2, said
    assert checkpoints.steps(tmp_path / 'checkpoints') == [3]
    assert 'test_resnet' in said[0][1] and 'test_resnet' not in said[1][1]  # one of them speaks


def test_interrupted_it_resumes_bit_for_bit(tmp_path):
    for name, stops in (('whole', []), ('parts', [3, 4, 1])):
        for left in stops:
            with pytest.raises(KeyboardInterrupt):
                interrupted(tmp_path / name, left, num_train_steps=10, resume=True)
        interrupted(tmp_path / name, 100, num_train_steps=10, resume=True)
    assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
    files = (tmp_path / name / 'checkpoints' / checkpoints.NAME.format(10) for name in ('whole', 'parts'))
    equal(*map(checkpoints.read, files))


def test_a_finished_training_goes_on_with_more_steps(tmp_path, capsys):
    own = dict(lr=None)  # rate, warm-up and decay of the target are the method's for a training of its length
    run(tmp_path, num_train_steps=8, **own)
    assert 'changes' not in capsys.readouterr().err
    done = run(tmp_path, num_train_steps=None, epochs=3, resume=True, **own)
    shown = capsys.readouterr().err
    assert done.steps == 24
    assert 'the learning rate schedule changes: from 8 to 24 steps, warmup_epochs from 0.1 to 0.3' in shown
    rates = [float(row['learning_rate']) for row in read_log(tmp_path / 'log.csv')]
    assert len(rates) == 24 and rates[7] < 0.1 * rates[8] and rates[8:] == sorted(rates[8:], reverse=True)
    run(tmp_path, num_train_steps=24, resume=True, **own)  # nothing is left to do
    assert 'changes' not in capsys.readouterr().err


def test_an_optimizer_that_goes_on_has_the_recipe_of_its_length():
    """BYOL's weight decay is another from 1,000 epochs on."""
    task = BYOL(timm.create_model('test_resnet', num_classes=0), input_size=(3, 32, 32))
    short, long = (build_optimizer(task.trainable_module, settings('byol', task.model, n)) for n in (300, 1000))
    Schedule(short, 300, 10)
    schedule = Schedule(long, 1000, 10)
    load_optimizer(long, short.state_dict())
    assert {group['weight_decay'] for group in long.param_groups} == {0, 1.5e-6}
    assert schedule.set(10) == pytest.approx(0.2)


def test_defaults_are_values_like_others(tmp_path):
    own = dict(projection_size=8, projection_hidden_size=16, feature_index=2)
    run(tmp_path, 'pixpro', num_train_steps=2, task_args=own)
    with pytest.raises(
        ValueError, match=r'is of another training: `gamma` was 2\.0 and is 1; `threshold` was 0\.7 and is 1$'
    ):
        run(tmp_path, 'pixpro', num_train_steps=2, task_args=dict(own, gamma=1, threshold=1), resume=True)
    run(tmp_path, 'pixpro', num_train_steps=2, task_args=dict(own, gamma=2), resume=True)


def test_other_lengths_are_refused(tmp_path):
    run(tmp_path, num_train_steps=6)
    with pytest.raises(ValueError, match='has done 6 steps already, got 5: give more `epochs` or `num_train_steps`'):
        run(tmp_path, num_train_steps=5, resume=True)
    with pytest.raises(ValueError, match='is of another training: `seed` was 2 and is 3'):
        run(tmp_path, num_train_steps=9, resume=True, seed=3)
    with pytest.raises(ValueError, match=r'is of another training: `lr` was 0\.05 and is 0\.1'):
        run(tmp_path, num_train_steps=9, resume=True, lr=0.1)
    (tmp_path / 'checkpoints' / checkpoints.NAME.format(6)).unlink()
    for steps in (4, 9):
        with pytest.raises(ValueError, match=f'has done 3 of 6 steps, got {steps}: `resume=True` with as many'):
            run(tmp_path, num_train_steps=steps, resume=True)
