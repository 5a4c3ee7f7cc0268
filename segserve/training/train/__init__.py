"""How a model's weights are made: data set, recipe, loop, checkpoints and the finished model
folder.
"""
