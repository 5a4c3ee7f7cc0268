"""Other protocols, translated to native requests: the Open Inference Protocol v2, and Hugging
Face's image segmentation.
"""
