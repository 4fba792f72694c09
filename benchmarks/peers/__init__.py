"""Straightforward implementations to measure and test against."""
