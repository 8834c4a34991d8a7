"""The evidence: one folder per study, and the tools that make them."""
