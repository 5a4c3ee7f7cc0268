"""Everything about making a model: data, training, evaluation, quantization. Servers never import
it.
"""
