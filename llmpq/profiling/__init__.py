"""Profiling: what the own runtime takes on this machine, measured before planning and after compiling."""
