"""What a step of a method costs, beside plain SGD, beside peers, and beside what was promised."""
