"""The container's command under more than it can do, for as long as one likes: `python -m bench.soak --minutes 20`."""
