"""Compares the served model with the network alone and with other servers: `python -m bench`.

registry       the systems to measure, by name; `peers/` has one module for each
peer           the common interface of all systems
workload       the images, and their order
over_http      systems with an HTTP server; `load` is the process that sends the requests
loop           systems without a server, in a separate process
session        one run: start, warm-up, measurement and stop; `rounds` defines the order of
    measurements
figures        medians, 99th percentiles, ratios
report, plot   the output; `machine` describes the hardware and the versions
"""
