{
  description = "The kernel project of timm-extra, for kernel-builder";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs =
    inputs:
    inputs.kernel-builder.lib.genKernelFlakeOutputs {
      inherit (inputs) self;
      path = ./.;
    };
}
