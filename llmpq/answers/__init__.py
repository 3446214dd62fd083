"""Answers: why a plan is as it is, how two plans differ, what other hardware or another budget would bring."""
