"""Compares the served model with the network alone and with other servers: `python -m bench`.

peer           what all systems share: the images, the interface
load           systems with an HTTP server, and the process that sends the requests
loop           systems without a server, in a separate process
session        the systems by name; one run: start, warm-up, measurement in rounds, and stop
peers          one module for each kind of system
figures        medians, 99th percentiles, ratios
report         the output
"""
