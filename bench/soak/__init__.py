"""An overload test of the container's command, of any duration: `python -m bench.soak --minutes
20`.
"""
