"""What people bring, what policies write, what machines emit: every case with the outcome that it must have."""
