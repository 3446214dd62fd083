"""The report: a plan as one self-contained page, for people."""
