"""From a step's statistics to an acknowledged delivery, behind the training thread's back."""
