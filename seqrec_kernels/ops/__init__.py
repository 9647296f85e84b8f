"""The operators, one folder a family."""
