"""The CUDA paths on a machine without a GPU: tensors that say ``cuda:N`` over the CPU's memory."""
