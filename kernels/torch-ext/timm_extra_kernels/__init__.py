"""Operations of timm_extra with Triton kernels and PyTorch fallbacks. Imports the standard library, torch, triton."""
