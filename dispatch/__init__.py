"""Which kernel runs, and why."""
