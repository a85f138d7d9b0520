"""The shared config module: the only part of poolkit that a deployable imports."""
