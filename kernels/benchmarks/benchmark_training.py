"""What `kernels benchmark` runs: forward and backward of the operations that training needs, beside plain PyTorch."""

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark


class LeFFDepthwiseTrain(Benchmark):
    """The depthwise stage of CeiT's LeFF in training, and the gradient of its tokens."""

    seed = 0

    def setup(self) -> None:
        gpu = torch.cuda.is_available()  # the tool says 'cuda' wherever PyTorch was built for it
        made = dict(device='cuda', dtype=torch.float16) if gpu else dict(device='cpu', dtype=torch.float32)
        self.x = torch.randn(64 if gpu else 4, 196, 1536, **made).requires_grad_()
        self.weight = (1 + 0.3 * torch.randn(1536, 1, 3, 3, **made)) / 3
        self.bias, self.gamma, self.beta = (0.25 * torch.randn(1536, **made) + s for s in (0, 1, 0))
        self.grad = torch.randn(self.x.shape, **made)

    def benchmark_ceit_small(self) -> None:
        out, *_ = self.kernel.leff_depthwise_train(
            self.x, self.weight, self.bias, grid=(14, 14), gamma1=self.gamma, beta1=self.beta,
            gamma2=0.25 * self.gamma, beta2=self.beta, eps=1e-5,
        )  # fmt: skip
        (self.out,) = torch.autograd.grad(out, self.x, self.grad)

    def verify_ceit_small(self) -> torch.Tensor:
        x = self.x.mT.unflatten(-1, (14, 14))
        hidden = F.gelu(F.batch_norm(x, None, None, self.gamma, self.beta, True))
        z = F.conv2d(hidden, self.weight, self.bias, padding=1, groups=len(self.bias))
        out = F.gelu(F.batch_norm(z, None, None, 0.25 * self.gamma, self.beta, True))
        return torch.autograd.grad(out.flatten(2).mT, self.x, self.grad)[0]
