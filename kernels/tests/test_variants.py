"""How often kernels are compiled: sizes of batch, queries and inputs choose no form of their own."""

import pytest
import variants

BATCHES = (1, 2, 3, 8, 16, 31, 64)
SHAPES = {
    'class_attention': [dict(H=6, L=L, D=64) for L in (12, 1, 16, 197)],
    'grid_query_attention': [
        dict(M=M, c=3, S=(H, W), F=16, D=64) for M, H, W in ((256, 64, 64), (1, 1, 1), (16, 16, 48), (33, 7, 33))
    ],
    'latent_cross_attention': [dict(M=M, N=N, C=261) for M, N in ((512, 50176), (1, 7), (16, 16), (33, 1024))],
    'fourier_cross_attention': [dict(M=512, c=3, S=(H, W), F=129) for H, W in ((224, 224), (1, 1), (16, 48), (7, 33))],
}


@pytest.mark.parametrize('operation', SHAPES)
def test_sizes_add_few_compiled_forms(operation):
    first = [dict(shape, B=8) for shape in SHAPES[operation][:1]]
    every = [dict(shape, B=batch) for shape in SHAPES[operation] for batch in BATCHES]
    once, forms = (variants.counted(operation, 'bfloat16', sizes) for sizes in (first, every))
    assert once and all(forms[kernel] <= once.get(kernel, 0) + 2 for kernel in forms), (once, forms)
