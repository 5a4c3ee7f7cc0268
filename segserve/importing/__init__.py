"""Imports checkpoints of other libraries as model folders: torchvision's DeepLabV3, DeepLabV3 and
DeepLabV3Plus of segmentation_models_pytorch, MobileNetV2 with DeepLabV3 of Hugging Face.

`checkpoint` reads a file without running code from it. `layouts` recognises the library and renames
the tensors. `model` checks the result and writes the folder.
"""
