"""The evidence: a folder a study, and the tools that make them."""
