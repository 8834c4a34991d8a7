"""Assigners: candidate boxes and objects -> labels."""
