"""Certificates: what an independent checker needs to believe a bound, and that checker, over integers."""
