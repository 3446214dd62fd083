"""Quantization: rounding, packing, the packed linear, and the indicators of what it costs."""
