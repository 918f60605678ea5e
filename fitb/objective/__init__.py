"""What the student learns from the teacher: pure losses and the objective that adds them up."""
