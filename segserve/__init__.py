"""DeepLabV3 segmentation, packaged as a TorchServe archive and served over HTTP."""

__version__ = "0.1.0"
