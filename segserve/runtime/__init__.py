"""The code that every model archive carries: from a request to its response.

`pipeline` processes one request in this order:

- `request` reads the image file and the options from the body, the form or the JSON.
- `image` decodes the file to uint8 RGB, upright and within the limits. `quarantine` rejects a file
  that is known to crash its decoder.
- `failover` runs the segmenter, which resizes the image, runs the network and selects the class of
  every pixel. If the GPU fails, it continues on the CPU.
- `answer` encodes the result as JSON, PNG, JPEG or NumPy file, and every error as an error
  response.

No module here imports a server, Ray or an HTTP client. Importing a module loads no weights, opens
no socket and logs nothing.
"""
