"""Data sets, training, evaluation, calibration and model cards. Needs the extra `train`."""

import jinja2  # noqa: F401 - first of all, so that the error names this extra and not one of torch
