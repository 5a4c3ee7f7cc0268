"""A script with the same code and without a server: it converts an image file to its label map as
PNG.
"""

from ..loop import Work
from ..workload import Workload
from .device import first_device
from .steps import OurSteps


def prepare(workload: Workload) -> Work:
    steps = OurSteps(workload.model, first_device())
    return lambda path: steps.encode(steps.predict(steps.decode(path.read_bytes())))
