"""What stages that learn from preferences share."""
