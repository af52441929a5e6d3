"""A package, so that no other one of this name in the environment takes its place."""
