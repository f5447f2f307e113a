"""Tensors of PyTorch: their memory, parameters, gradients, and the devices that update them."""
