"""The code that every model archive carries: from a request to its response.

`pipeline` processes one request in this order:

- `request` reads the image file and the options from the body, the form or the JSON.
- `decode` decodes the file to uint8 RGB, upright and within the limits, and rejects a file that is
  known to crash its decoder.
- `inference` resizes the image, runs the network and selects the class of every pixel. If the GPU
  fails, it continues on the CPU.
- `encode` encodes the result as JSON, PNG, JPEG or NumPy file, and errors as error responses.

`network` builds the network with its weights, `acceleration` makes it faster, `telemetry` measures.

No module here imports a server, Ray or an HTTP client. Importing a module loads no weights, opens
no socket and logs nothing.
"""
