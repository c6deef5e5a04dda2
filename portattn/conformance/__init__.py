"""The problems that every backend is held to, and how close its answers must be."""
