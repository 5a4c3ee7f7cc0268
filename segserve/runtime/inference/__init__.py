"""RGB pixels to the class of every pixel: resize, tiles, test-time augmentation, class
selection.
"""
