"""Training: one loop for every task, schedules with units, and resuming without a trace."""
