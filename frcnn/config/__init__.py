"""Composing and checking the configuration."""
