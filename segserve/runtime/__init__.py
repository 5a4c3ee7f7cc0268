"""Converts image bytes to responses. Archives carry a copy of this package.

`pipeline` is the path of a request: `request` parses it, `decode` reads the image,
`inference` computes the class of every pixel, `encode` writes the response. `network` builds a
model from its record, `acceleration` makes it faster, `metrics` and `telemetry` measure. Nothing
here imports a server.
"""
