"""Arithmetic of uniform quantization: forms, encodings, and the one definition of quantize and dequantize."""
