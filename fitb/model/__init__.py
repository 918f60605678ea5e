"""Teacher and student: loading them, and the contract that they must keep."""
