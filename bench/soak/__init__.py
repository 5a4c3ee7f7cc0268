"""An overload test of the container's command: `python -m bench.soak --minutes 20`."""
