"""Data sets: where they lie, whether they are whole, and how a step draws its batch."""
