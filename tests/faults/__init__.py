"""What the promises hold against: several processes under load, faults, and a checker of what came of it."""
