"""What arrays of NumPy, CuPy and PyTorch are to a step: memory, parameters, gradients, devices."""
