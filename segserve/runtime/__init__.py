"""What a model archive carries: from the bytes of an image to the class of every pixel.

The way of a request is `image` -> `segmenter` -> `mask`; nothing here knows which server it runs under, and
importing it loads no weights, opens no socket and logs nothing.
"""
