"""Data sets, training, evaluation and quantization. The serving packages do not import it."""
