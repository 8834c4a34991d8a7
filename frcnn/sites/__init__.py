"""Sites: where a detector turns candidate boxes into training examples."""
