"""A GPU that is not there: the driver and TensorRT as far as the runtime uses them, with the rules that they keep."""
