"""How fast the project is on this machine, compared with torchvision and with its own limits."""
