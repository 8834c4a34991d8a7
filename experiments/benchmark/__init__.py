"""How fast the project is, on whatever device is there, beside what it could be compared with."""
