"""Simulation of continuous batching: requests, the engine's scheduling policy, a pipeline of stages, percentiles."""
