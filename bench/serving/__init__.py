"""Compares the served model with the network alone and with other servers: `python -m bench`.

registry       the systems to measure, by name; `peers/` has one module for each
peer           what all systems share: the images, the interface
load           systems with an HTTP server, and the process that sends the requests
loop           systems without a server, in a separate process
session        one run: start, warm-up, measurement in rounds, and stop
figures        medians, 99th percentiles, ratios
report         the output
"""
