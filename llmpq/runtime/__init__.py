"""The runtime that executes stage modules: schedule, caches, transports, engine."""
