"""Arrays of CuPy, and of whatever it can look into: their memory, parameters, and the GPU that updates them."""
