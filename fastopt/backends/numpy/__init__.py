"""Arrays of NumPy: their memory, parameters, gradients, and the CPU that updates them."""
